"""Exchange logits: both ends hold the data, and the teacher's logits travel."""

from __future__ import annotations

from torch import Tensor

from edgecompress.online.connection import Connection
from edgecompress.online.exchanges.base import Exchange, StudentSetup
from edgecompress.online.exchanges.steps import StepStudent, StepTeacher
from edgecompress.online.lesson import Lesson
from edgecompress.online.session import StudentSession
from edgecompress.online.training import Attempt
from edgecompress.train.batches import Batch
from edgecompress.train.fit import Companion, Loss, label_loss


class Logits(Exchange):
    """The teacher may train: it publishes its logits at each step before it learns from it."""

    def teacher(self, lesson: Lesson, session: StudentSession) -> StepTeacher:
        """The end that answers each requested step."""
        return StepTeacher(lesson, session)

    def student(self, setup: StudentSetup, connection: Connection) -> StepStudent:
        """The end that requests steps ahead."""
        return StepStudent(setup, connection)

    def training(self, attempt: Attempt) -> tuple[Loss, Companion | None]:
        """The loss on the labels."""

        def loss(logits: Tensor, batch: Batch) -> Tensor:
            attempt.publish(attempt.step, logits.detach())
            return label_loss(logits, batch)

        return loss, None


EXCHANGE = Logits()
