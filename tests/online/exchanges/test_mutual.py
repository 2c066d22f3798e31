"""Mutual learning between two machines equals that of one process."""

from __future__ import annotations

import pytest
from torch import Tensor, nn

from edgecompress.data import DataSet
from edgecompress.methods.distill import mutual
from edgecompress.methods.sources import Peer
from edgecompress.online.mutual import Publisher, RemotePeer
from edgecompress.online.plan import Plan
from edgecompress.train.fit import Hooks, Learner
from tests.online.support import (
    SETTINGS,
    Serve,
    assert_same,
    attend_to_the_end,
    attend_together,
    break_connection,
    new_student,
    plan_for,
    student_network,
    teacher_network,
    train_together,
)


def exact_learners(data: DataSet) -> dict[str, Learner]:
    """Deep mutual learning in one process."""
    return {
        "teacher": Learner(teacher_network(data), mutual([Peer("student")]), SETTINGS),
        "student": Learner(student_network(data), mutual([Peer("teacher")]), SETTINGS),
    }


def stale_learners(data: DataSet, plan: Plan) -> dict[str, Learner]:
    """Both networks in one process, each learning from logits of the staleness of `plan`."""
    box = dict[tuple[str, int], Tensor]()

    def learner(model: nn.Module, name: str, other: str) -> Learner:
        end = Publisher(plan, data, lambda step, logits: box.update({(name, step): logits}))
        peer = RemotePeer(end, lambda step: box[other, step])
        return Learner(model, end.before(mutual([peer])), SETTINGS, Hooks(companion=end))

    return {
        "teacher": learner(teacher_network(data), "teacher", "student"),
        "student": learner(student_network(data), "student", "teacher"),
    }


@pytest.mark.parametrize("staleness", [0, 3])
@pytest.mark.parametrize("broken", [False, True])
def test_both_networks_equal_those_of_one_process(
    staleness: int, broken: bool, data: DataSet, serve_lesson: Serve
) -> None:
    """With staleness 0 those of deep mutual learning, with W those of one process in which both
    learn from logits W steps old.
    """
    served = serve_lesson(train=SETTINGS)
    plan = plan_for(data, mutual=True, staleness=staleness)
    student = new_student(data, plan)
    if broken:
        break_connection(student, 10)
    result = attend_to_the_end(served, student, breaks=int(broken))
    learners = stale_learners(data, plan) if staleness else exact_learners(data)
    reference = train_together(data, **learners)
    assert_same(served.teacher.model, reference["teacher"].model)
    assert_same(result.model, reference["student"].model)


def test_teacher_learns_from_the_mean_of_two_students(data: DataSet, serve_lesson: Serve) -> None:
    """Two equal students teach what one does."""
    served = serve_lesson(train=SETTINGS, students=2)
    plan = plan_for(data, mutual=True)
    students = {name: new_student(data, plan, name=name) for name in ("one", "two")}
    results = attend_together(served, students)
    assert_same(results["one"].model, results["two"].model)
    reference = train_together(data, **exact_learners(data))
    assert_same(served.teacher.model, reference["teacher"].model)
