"""The student through breaks: every sample counts once, and patience has an end."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from edgecompress.data import DataSet
from edgecompress.errors import EdgecompressError, UsageError
from edgecompress.online.exchanges.steps import StepTeacher
from edgecompress.online.stream import Stream
from edgecompress.online.wire import ConnectionLostError
from tests.online.support import (
    SAMPLES,
    SETTINGS,
    STEPS,
    Serve,
    assert_same,
    attend,
    attend_to_the_end,
    before_step,
    break_connection,
    disconnect,
    new_student,
    plan_for,
    train_in_one_process,
)


@pytest.mark.parametrize("codec", ["fp32", "soft"])
@pytest.mark.parametrize("training", [False, True])
def test_after_a_break_every_sample_counts_once(
    codec: str, training: bool, data: DataSet, serve_lesson: Serve, tmp_path: Path
) -> None:
    """The result is that of a lesson without a break."""
    models, payloads = [], []
    for broken in (False, True):
        served = serve_lesson(train=SETTINGS if training else None)
        plan = plan_for(data, codec=codec, run=f"run {broken}")
        student = new_student(data, plan, states=tmp_path / str(broken))
        if broken:
            break_connection(student, 7)
        models.append(attend_to_the_end(served, student, breaks=int(broken)).model)
        payloads.append(student.tally.payload_bytes)
        assert student.tally.steps == STEPS
    assert_same(models[0], models[1])
    assert payloads[0] == payloads[1], "the bytes of every step count once"


def test_two_breaks_to_the_same_step_keep_one_time_per_step(
    data: DataSet, serve_lesson: Serve
) -> None:
    served = serve_lesson()
    student = new_student(data)
    break_connection(student, 7)
    break_connection(student, 6)
    attend_to_the_end(served, student, breaks=2)
    assert len(student.tally.step_ms) == len(student.tally.wait_ms) == STEPS


def test_patience_counts_from_the_break(data: DataSet, serve_lesson: Serve) -> None:
    """A lesson that went well for longer than the student's patience survives a break, too."""
    served = serve_lesson()
    student = new_student(data)

    def pause_and_disconnect() -> None:
        time.sleep(1.5)
        disconnect(student)

    before_step(student, 6, pause_and_disconnect)
    attend(served, student, patience=1.0)
    assert student.tally.breaks == 1
    assert student.tally.samples == SAMPLES


def test_lesson_that_gains_no_step_ends(
    data: DataSet, serve_lesson: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The teacher answers every hello, and then breaks off: that is no progress."""

    def broken(*_: object) -> None:
        raise ConnectionLostError("out of order")

    monkeypatch.setattr(StepTeacher, "_answer", broken)
    served = serve_lesson()
    start = time.monotonic()
    with pytest.raises(EdgecompressError, match=r"out of order.*no step was gained"):
        attend(served, new_student(data), patience=2.0)
    assert time.monotonic() - start < 20


def test_result_is_written_before_the_teacher_is_told(
    data: DataSet, serve_lesson: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = list[str]()
    finish = Stream.finish

    def lost_once(*arguments: object) -> object:
        order.append("the teacher is told")
        if len(order) < 3:
            raise ConnectionLostError("lost on the way")
        return finish(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Stream, "finish", lost_once)
    served = serve_lesson()
    new_student(data).attend(
        served.address, None, 20, finished=lambda _: order.append("the result is written")
    )
    assert order == ["the result is written", "the teacher is told", "the teacher is told"]
    served.assert_ended_well()


def test_mismatched_plans_are_refused(data: DataSet, serve_lesson: Serve) -> None:
    """Whoever was refused has no place in the lesson."""
    served = serve_lesson()
    for changes, message in (
        ({"data_digest": "0" * 64}, "are not the teacher's"),
        ({"classes": 7}, "classes"),
        (
            {"batch_size": 0, "exchange": "inputs"},
            "plan: batch_size: Input should be greater than or equal to 1",
        ),
        ({"mutual": True}, "needs a teacher that trains"),
    ):
        with pytest.raises(UsageError, match=message):
            attend(served, new_student(data, plan_for(data, **changes)))

    training = serve_lesson(train=SETTINGS)
    for changes, message in (
        (
            {"epochs": 3},
            "the student trains for 3 epochs, batches of 32, seed 0, the teacher for 2, 32, 0",
        ),
        ({"exchange": "inputs"}, "needs a frozen teacher"),
    ):
        with pytest.raises(UsageError, match=message):
            attend(training, new_student(data, plan_for(data, **changes)))

    result = attend(served, new_student(data))
    assert_same(result.model, train_in_one_process(data).model)
