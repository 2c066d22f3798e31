"""Exchange weights: the student computes the logits of the teacher's weights."""

from __future__ import annotations

import pytest
from torch import Tensor, nn

from edgecompress.data import DataSet
from edgecompress.methods.distill import learning_from
from edgecompress.train.batches import Batch
from edgecompress.train.fit import Hooks, fit, label_loss
from tests.online.support import (
    CPU,
    SEED,
    SETTINGS,
    Frozen,
    Serve,
    assert_same,
    attend,
    attend_to_the_end,
    break_connection,
    network,
    new_student,
    plan_for,
    student_network,
    teacher_network,
    train_in_one_process,
)


def copied_state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_student_of_frozen_weights_equals_that_of_one_process(
    data: DataSet, serve_lesson: Serve
) -> None:
    served = serve_lesson()
    mentor = network("lenet5", data, 99)
    student = new_student(data, plan_for(data, exchange="weights"), mentor=mentor)
    result = attend(served, student)
    assert_same(result.model, train_in_one_process(data).model)
    assert student.tally.payload_bytes > 2 * 4 * 62_000


@pytest.mark.parametrize("broken", [False, True])
def test_weights_of_a_training_teacher_are_those_before_each_epoch(
    broken: bool, data: DataSet, serve_lesson: Serve
) -> None:
    """Each epoch of the student learns from the teacher as it was before that epoch of its own
    training.
    """
    served = serve_lesson(train=SETTINGS)
    plan = plan_for(data, exchange="weights")
    student = new_student(data, plan, mentor=network("lenet5", data, 99))
    if broken:
        break_connection(student, 8)
    result = attend_to_the_end(served, student, breaks=int(broken))

    teacher = teacher_network(data)
    states = [copied_state(teacher)]
    hooks = Hooks(on_epoch=lambda _: states.append(copied_state(teacher)))
    trained = fit(teacher, data, label_loss, SETTINGS, seed=SEED, device=CPU, hooks=hooks)
    assert_same(served.teacher.model, trained.model)

    class BeforeEachEpoch(Frozen):
        steps = 0

        def logits(self, batch: Batch) -> Tensor:
            epoch, at = divmod(self.steps, plan.steps_per_epoch)
            if at == 0:
                self.model.load_state_dict(states[epoch])
            self.steps += 1
            return super().logits(batch)

    loss = learning_from(BeforeEachEpoch(teacher_network(data)))
    reference = fit(student_network(data), data, loss, SETTINGS, seed=SEED, device=CPU)
    assert_same(result.model, reference.model)
