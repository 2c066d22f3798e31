"""A teacher that trains: breaks, failures, pruning, and several students."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from torch import nn

from edgecompress.data import DataSet
from edgecompress.errors import EdgecompressError
from edgecompress.methods.distill import learning_from
from edgecompress.methods.sources import Peer
from edgecompress.stages.common import count
from edgecompress.train.fit import Hooks, Learner, label_loss
from tests.online.support import (
    SAMPLES,
    SETTINGS,
    STEPS,
    Serve,
    assert_same,
    attend,
    attend_to_the_end,
    attend_together,
    before_step,
    break_connection,
    disconnect,
    new_student,
    plan_for,
    pruning_hooks,
    student_network,
    teacher_network,
    train_together,
)


@pytest.mark.parametrize("both_ways", [False, True])
def test_one_of_two_students_breaks_off(
    both_ways: bool, data: DataSet, serve_lesson: Serve
) -> None:
    """The other one continues, or, where each learns from the other through the teacher, rewinds
    with it; all networks are as without a break.
    """
    plan = plan_for(data, mutual=both_ways, keep_every=3)
    outcomes = list[list[nn.Module]]()
    for broken in (False, True):
        served = serve_lesson(train=SETTINGS, students=2)
        students = {
            name: new_student(data, plan, seed=seed, name=name)
            for name, seed in (("one", 2), ("two", 5))
        }
        if broken:
            break_connection(students["two"], 9)
        results = attend_together(served, students)
        assert students["two"].tally.breaks == int(broken)
        assert students["one"].tally.breaks == int(broken and both_ways)
        assert [student.tally.samples for student in students.values()] == [SAMPLES, SAMPLES]
        outcomes.append([served.teacher.model, results["one"].model, results["two"].model])
    for unbroken, broken_off in zip(*outcomes, strict=True):
        assert_same(broken_off, unbroken)


@pytest.mark.parametrize("broken", [False, True])
def test_both_networks_are_pruned_while_they_train(
    broken: bool, data: DataSet, serve_lesson: Serve, tmp_path: Path
) -> None:
    """The same two smaller networks as in one process, through a break after the first cut."""
    teacher, learner = teacher_network(data), student_network(data, "lenet5")
    full = count(learner)
    hooks = pruning_hooks(teacher, data)
    served = serve_lesson(model=teacher, train=SETTINGS, cut=hooks)
    student = new_student(
        data,
        model=learner,
        states=tmp_path / "kept",
        cut=pruning_hooks(learner, data),
    )
    if broken:
        break_connection(student, 10)
    result = attend_to_the_end(served, student, breaks=int(broken))
    assert count(result.model) <= 0.6 * full
    assert count(served.teacher.model) <= 0.6 * full

    learners = {}
    for name, model, loss in (
        ("teacher", teacher_network(data), label_loss),
        ("student", student_network(data, "lenet5"), learning_from(Peer("teacher"))),
    ):
        hooks = pruning_hooks(model, data)
        learners[name] = Learner(model, loss, SETTINGS, hooks)
    reference = train_together(data, **learners)
    assert_same(served.teacher.model, reference["teacher"].model)
    assert_same(result.model, reference["student"].model)


@pytest.mark.parametrize("both_ways", [False, True])
def test_student_receives_the_reason_of_a_failed_training(
    both_ways: bool, data: DataSet, serve_lesson: Serve
) -> None:
    """It does not wait for answers that cannot come."""

    def fails(model: nn.Module, epoch: int) -> None:
        raise OSError("no space left on device")

    served = serve_lesson(train=SETTINGS, cut=Hooks(cut=fails))
    student = new_student(data, plan_for(data, mutual=both_ways))
    began = time.monotonic()
    with pytest.raises(EdgecompressError, match="the teacher gave up: no space left on device"):
        attend(served, student, patience=3)
    assert time.monotonic() - began < 30
    served.thread.join(20)
    assert isinstance(served.error, OSError)


def test_teacher_rewinds_after_its_last_step(data: DataSet, serve_lesson: Serve) -> None:
    """Its training has ended, and its last answers were lost."""
    served = serve_lesson(train=SETTINGS)
    student = new_student(data)
    ended = [False]

    def disconnect_after_the_training() -> None:
        deadline = time.monotonic() + 20
        while served.teacher.result is None and time.monotonic() < deadline:
            time.sleep(0.05)
        ended[0] = served.teacher.result is not None
        disconnect(student)

    before_step(student, STEPS, disconnect_after_the_training)
    result = attend(served, student)
    assert ended[0]
    served.assert_ended_well()

    unbroken = serve_lesson(train=SETTINGS)
    assert_same(result.model, attend(unbroken, new_student(data)).model)
