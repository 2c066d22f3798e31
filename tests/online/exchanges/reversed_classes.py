"""An exchange that only tests use: the teacher's logits travel with the classes reversed."""

from __future__ import annotations

from torch import Tensor

from edgecompress.online.connection import Connection
from edgecompress.online.exchanges.base import Outputs, StudentSetup
from edgecompress.online.exchanges.logits import Logits
from edgecompress.online.exchanges.steps import StepStudent, StepTeacher
from edgecompress.online.lesson import Lesson
from edgecompress.online.session import StudentSession
from edgecompress.train.batches import Batch


class ReversedTeacher(StepTeacher):
    def compute(self, step: int, payload: bytes) -> Outputs:
        outputs = super().compute(step, payload)
        return Outputs(outputs.logits[:, ::-1])


class ReversedStudent(StepStudent):
    def logits(self, batch: Batch) -> Tensor:
        return super().logits(batch).flip(1)


class Reversed(Logits):
    def teacher(self, lesson: Lesson, session: StudentSession) -> StepTeacher:
        return ReversedTeacher(lesson, session)

    def student(self, setup: StudentSetup, connection: Connection) -> StepStudent:
        return ReversedStudent(setup, connection)


EXCHANGE = Reversed()
