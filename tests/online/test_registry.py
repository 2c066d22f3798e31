"""The student registry: names, places, and lessons that resume."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgecompress.data import DataSet
from edgecompress.errors import EdgecompressError, UsageError
from edgecompress.online.connection import Connection
from edgecompress.online.student import Student
from tests.online.support import (
    SETTINGS,
    STEPS,
    Serve,
    ServedLesson,
    assert_same,
    attend,
    new_student,
    plan_for,
    wait_until,
)


def test_name_belongs_to_one_student(data: DataSet, serve_lesson: Serve) -> None:
    served = serve_lesson(train=SETTINGS, students=2)
    first = Connection(served.address, None, plan_for(data), "same", "one machine")
    first.meet([], 5)
    with pytest.raises(
        EdgecompressError, match="called 'same' is here already: give each a --name"
    ):
        attend(served, new_student(data, name="same"), patience=1.0)
    first.close()


def interrupted_after_an_epoch(student: Student, served: ServedLesson) -> None:
    """The student is interrupted, then the teacher's server stops."""

    def interrupt(row: object) -> None:
        raise KeyboardInterrupt

    student.on_epoch = interrupt
    with pytest.raises(KeyboardInterrupt):
        attend(served, student, patience=5)
    served.stop()
    # The training writes states until it notices, or has come to its end.
    wait_until(
        lambda: served.teacher.result is not None or any("waiting" in one for one in served.notes)
    )


def test_resumed_lesson_keeps_its_states_when_a_stranger_connects(
    data: DataSet, serve_lesson: Serve, tmp_path: Path
) -> None:
    """The states wait for the student they belong to, and its place stays free."""
    states = tmp_path / "kept"
    served = serve_lesson(train=SETTINGS, states=states)
    interrupted_after_an_epoch(new_student(data, states=tmp_path / "s"), served)
    before = sorted(path.name for path in states.glob("*.pt"))
    assert before

    resumed = serve_lesson(train=SETTINGS, states=states, resume=True)
    stranger = new_student(data, plan_for(data, keep_every=3), name="stranger")
    with pytest.raises(UsageError, match="resumes a lesson with other students"):
        attend(resumed, stranger, patience=5)
    assert sorted(path.name for path in states.glob("*.pt")) == before

    result = attend(resumed, new_student(data, states=tmp_path / "s"))
    assert result.history
    assert resumed.teacher.steps == STEPS


@pytest.mark.parametrize("both_ways", [False, True])
def test_resumed_teacher_of_a_finished_lesson_needs_no_student(
    both_ways: bool, data: DataSet, serve_lesson: Serve, tmp_path: Path
) -> None:
    """A teacher that was killed at the very end: all students know of the end and are gone."""
    served = serve_lesson(train=SETTINGS, states=tmp_path / "kept")
    plan = plan_for(data, mutual=both_ways)
    attend(served, new_student(data, plan))
    served.assert_ended_well()
    served.stop()

    resumed = serve_lesson(train=SETTINGS, states=tmp_path / "kept", resume=True)
    resumed.assert_ended_well(10)
    assert not resumed.thread.is_alive()
    assert resumed.teacher.steps == served.teacher.steps == plan.steps
    assert_same(resumed.teacher.model, served.teacher.model)
