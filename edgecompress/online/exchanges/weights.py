"""Exchange weights: the teacher's weights travel before each epoch, and the student computes the
teacher's logits itself (García González 2022, figure 2.16).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from edgecompress.errors import UsageError
from edgecompress.online import wire
from edgecompress.online.connection import Connection
from edgecompress.online.exchanges.base import (
    Exchange,
    StudentEndpoint,
    StudentSetup,
    TeacherEndpoint,
)
from edgecompress.online.lesson import Lesson, packed_weights
from edgecompress.online.plan import Plan
from edgecompress.online.session import StudentSession
from edgecompress.online.stream import Stream
from edgecompress.online.training import Attempt
from edgecompress.train.batches import Batch
from edgecompress.train.fit import Companion, Kept, Loss, Onlooker, label_loss
from edgecompress.train.modes import outputs_of


class EpochWeights(Onlooker):
    """A `Companion` that offers the network's weights as they are before each epoch."""

    def __init__(self, offer: Callable[[int, bytes], None]) -> None:
        self.offer = offer
        self.epoch = 0
        self.weights = b""
        self._restored = False

    def attach(self, model: nn.Module) -> None:
        """Offer the weights of the epoch that begins; in an epoch that continues from a saved
        state, those that were offered for it.
        """
        if not self._restored:
            self.epoch += 1
            self.weights = packed_weights(model)
        self._restored = False
        self.offer(self.epoch, self.weights)

    def kept(self) -> Kept:
        """The weights of the current epoch."""
        packed = torch.frombuffer(bytearray(self.weights), dtype=torch.uint8)
        return {"epoch": self.epoch, "weights": packed}

    def take(self, kept: Kept) -> None:
        """Restore the weights of the current epoch."""
        self.epoch = kept["epoch"]
        self.weights = kept["weights"].numpy().tobytes()
        self._restored = True


class WeightsTeacher(TeacherEndpoint):
    """Answers each request for the weights of an epoch."""

    def reply(self, stream: Stream, message: wire.Message) -> Iterator[wire.Frame]:
        """The state dict, as safetensors: of the frozen network, or as it was before the requested
        epoch of the teacher's own training.
        """
        if message.kind != wire.WEIGHTS or message.run != self.plan.run:
            raise self.unexpected(message)
        epoch = message.epoch
        with stream.registry.changed:
            self.session.epoch = epoch
            self.session.answered = (epoch - 1) * self.plan.steps_per_epoch
            stream.registry.changed.notify_all()

        def offered() -> bytes | None:
            if self.lesson.trains:
                stream.check()
            return self.lesson.weights(epoch)

        weights = yield from stream.wait(offered)
        self.lesson.traffic.add_payload(len(weights))
        yield from stream.send(wire.WEIGHTS, self.plan.run_stamp(epoch), payload=weights)


class WeightsStudent(StudentEndpoint):
    """Requests the weights of each epoch, and is the source of what the student learns from: the
    logits of a copy of the teacher.
    """

    def __init__(self, setup: StudentSetup, connection: Connection) -> None:
        super().__init__(setup, connection)
        self._arrived = dict[int, bytes]()
        self._loaded_epoch = 0

    def training(self) -> tuple[Loss, Companion | None]:
        """The loss on the logits of the teacher's weights."""
        return self.setup.objective.learning_from(self), None

    def receive(self, message: wire.Message) -> None:
        """Take the weights of an epoch."""
        if message.kind == wire.WEIGHTS:
            self._arrived[message.epoch] = message.payload

    def logits(self, batch: Batch) -> Tensor:
        """Logits (B, K) of `batch`, computed with the teacher's weights of its epoch."""
        self.progress.advance(batch)
        epoch, _ = self.plan.position(self.progress.step)
        mentor = self.setup.mentor
        if mentor is None:
            raise UsageError(
                "exchange weights needs the teacher's network by name: give --teacher-model"
            )
        if self._loaded_epoch != epoch:
            self._load(mentor, self._fetch(epoch))
            self._loaded_epoch = epoch
        with torch.no_grad():
            logits: Tensor = outputs_of(mentor.eval(), batch.images)
        return logits.float()

    def _fetch(self, epoch: int) -> bytes:
        """The weights of `epoch`; waits. Their payload counts once, also after a break."""
        what = f"no weights of epoch {epoch}"
        weights = self.progress.waited(lambda: self._requested(epoch, what))
        tally = self.progress.tally
        if epoch > tally.weights_epoch:
            tally.payload_bytes += len(weights)
            tally.weights_epoch = epoch
        return weights

    def _requested(self, epoch: int, what: str) -> bytes:
        self.connection.send(wire.WEIGHTS, self.plan.run_stamp(epoch))
        return self.connection.wait_for(self._arrived, epoch, what)

    @staticmethod
    def _load(mentor: nn.Module, weights: bytes) -> None:
        """Load packed weights. Raises `UsageError` when they are those of another network."""
        from safetensors.torch import load

        state = load(weights)
        differing = _differing(mentor.state_dict(), state)
        if differing:
            raise UsageError(
                f"the teacher's weights do not fit --teacher-model: {len(differing)} tensors "
                f"differ, first '{differing[0]}'"
            )
        mentor.load_state_dict(state)


class Weights(Exchange):
    """Both ends hold the data; the teacher may train."""

    def teacher(self, lesson: Lesson, session: StudentSession) -> WeightsTeacher:
        """The end that sends weights."""
        return WeightsTeacher(lesson, session)

    def student(self, setup: StudentSetup, connection: Connection) -> WeightsStudent:
        """The end that loads weights."""
        return WeightsStudent(setup, connection)

    def training(self, attempt: Attempt) -> tuple[Loss, Companion | None]:
        """The loss on the labels; the companion offers the weights before each epoch."""
        return label_loss, EpochWeights(attempt.offer)

    def steps_apart(self, plan: Plan) -> int:
        """The teacher may be an epoch ahead, and weights are needed from the beginning of one."""
        return 2 * plan.steps_per_epoch

    def check_teacher(self, plan: Plan, lesson: Lesson) -> None:
        """Raises `UsageError` for a teacher that is pruned while it trains."""
        if lesson.is_pruned:
            raise UsageError(
                "a teacher that is pruned cannot send its weights, whose shapes change: use "
                "--exchange logits"
            )


def _differing(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """The names, sorted, of tensors that only one of two state dicts has, or in another shape."""
    names = sorted({*expected, *state})
    return [
        name
        for name in names
        if name not in expected or name not in state or expected[name].shape != state[name].shape
    ]


EXCHANGE = Weights()
