"""Exchanges logits and inputs: the student is the one that a single process trains."""

from __future__ import annotations

import pytest

from edgecompress.data import DataSet
from edgecompress.methods.distill import learning_from
from edgecompress.methods.sources import Peer
from edgecompress.train.fit import Learner, label_loss
from tests.online.support import (
    SAMPLES,
    SETTINGS,
    STEPS,
    Serve,
    assert_same,
    attend,
    attend_to_the_end,
    new_student,
    plan_for,
    student_network,
    teacher_network,
    train_in_one_process,
    train_together,
)


@pytest.mark.parametrize("exchange", ["logits", "inputs"])
def test_student_equals_that_of_one_process(
    exchange: str, data: DataSet, serve_lesson: Serve
) -> None:
    served = serve_lesson()
    student = new_student(data, plan_for(data, exchange=exchange))
    result = attend_to_the_end(served, student)
    assert_same(result.model, train_in_one_process(data).model)
    assert student.tally.steps == served.teacher.steps == STEPS
    pixels = SAMPLES * 3 * 32 * 32 if exchange == "inputs" else 0
    assert student.tally.payload_bytes == SAMPLES * 10 * 4 + pixels
    if exchange == "inputs":
        assert student.tally.wire_bytes <= 1.15 * student.tally.payload_bytes


def test_training_teacher_equals_that_of_one_process(data: DataSet, serve_lesson: Serve) -> None:
    served = serve_lesson(train=SETTINGS)
    result = attend(served, new_student(data))
    served.assert_ended_well()
    reference = train_together(
        data,
        teacher=Learner(teacher_network(data), label_loss, SETTINGS),
        student=Learner(student_network(data), learning_from(Peer("teacher")), SETTINGS),
    )
    assert_same(served.teacher.model, reference["teacher"].model)
    assert_same(result.model, reference["student"].model)
