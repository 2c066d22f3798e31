"""Exchange inputs: only the student holds the data. Its pixels travel to the teacher, logits
back.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from edgecompress.errors import UsageError
from edgecompress.online import wire
from edgecompress.online.connection import Connection
from edgecompress.online.exchanges.base import Exchange, StudentSetup
from edgecompress.online.exchanges.steps import LARGE_WINDOW, StepStudent, StepTeacher
from edgecompress.online.lesson import Lesson
from edgecompress.online.plan import Plan
from edgecompress.online.session import StudentSession


class InputsTeacher(StepTeacher):
    """Answers each step from the pixels in its request."""

    def pixels(self, step: int, payload: bytes) -> Tensor:
        """Pixels (B, C, H, W) uint8. Raises `UsageError` for a payload of another size."""
        expected = len(self.plan.ids(step)) * math.prod(self.plan.native)
        if len(payload) != expected:
            raise UsageError(
                f"step {step} brings {len(payload)} bytes of pixels, {expected} expected: "
                "start both ends again"
            )
        flat = torch.frombuffer(bytearray(payload), dtype=torch.uint8)
        return flat.reshape(-1, *self.plan.native)


class InputsStudent(StepStudent):
    """Sends the pixels of each step with its request, one request per step."""

    max_window = LARGE_WINDOW

    def request(self, done: int, last: int, ahead: int) -> int:
        """Send the steps after `done` up to `last`; returns the last step that was requested."""
        for step in range(done + 1, last + 1):
            _, pixels = self.plan.pixels(self.setup.data, step)
            payload = pixels.numpy().tobytes()
            self._sent_bytes[step] = len(payload)
            self.connection.send(wire.REQUEST, self.plan.stamp(step), payload=payload)
        return max(done, last)


class Inputs(Exchange):
    """The teacher is frozen, and needs no data."""

    needs_data = False

    def teacher(self, lesson: Lesson, session: StudentSession) -> InputsTeacher:
        """The end that reads the pixels of each request."""
        return InputsTeacher(lesson, session)

    def student(self, setup: StudentSetup, connection: Connection) -> InputsStudent:
        """The end that sends pixels."""
        return InputsStudent(setup, connection)

    def check_teacher(self, plan: Plan, lesson: Lesson) -> None:
        """Raises `UsageError` for images that the teacher's network cannot read."""
        lesson.check_reads(plan.image_shape)


EXCHANGE = Inputs()
