"""The interface of an exchange: what a teacher's end and a student's end of it must do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from edgecompress.data import DataSet
from edgecompress.errors import UsageError
from edgecompress.methods.distill import learning_from
from edgecompress.methods.sources import LogitSource
from edgecompress.online import wire
from edgecompress.online.codec import Array, CodecState
from edgecompress.online.plan import Plan
from edgecompress.online.progress import Progress
from edgecompress.online.store import codec_arrays, codec_tensors
from edgecompress.train.fit import Companion, Kept, Loss

if TYPE_CHECKING:
    from edgecompress.online.connection import Connection
    from edgecompress.online.lesson import Lesson
    from edgecompress.online.session import StudentSession
    from edgecompress.online.stream import Stream
    from edgecompress.online.training import Attempt

MapShape = Sequence[int]
"""[C, H, W] of the maps of one layer."""


@dataclass(frozen=True)
class Outputs:
    """What the teacher computes for a step: logits (B, K) float32, and the maps (B, C, H, W) that
    travel with them.
    """

    logits: Array
    maps: Sequence[Array] = ()


@dataclass(frozen=True)
class Objective:
    """The student's loss on the teacher's logits, and the weight of its maps; None takes the
    defaults of the loss.
    """

    loss: str = "kl"
    temperature: float | None = None
    alpha: float | None = None
    feature_weight: float = 1.0

    def learning_from(self, source: LogitSource) -> Loss:
        """The loss on the labels, and on the logits of `source`."""
        return learning_from(source, self.loss, self.temperature, self.alpha)


@dataclass(frozen=True)
class StudentSetup:
    """What the student's end of an exchange works with. `mentor` is the teacher's network where its
    weights travel.
    """

    plan: Plan
    data: DataSet
    model: nn.Module
    objective: Objective
    progress: Progress
    mentor: nn.Module | None = None


class Exchange(ABC):
    """One kind of exchange. It has no state: a lesson asks it for the ends that do the work.

    `feature_kinds` are the values of `features` that a plan may have, and `needs_data` is whether
    the teacher must hold the student's data.
    """

    feature_kinds: tuple[str, ...] = ("",)
    needs_data = True

    @abstractmethod
    def teacher(self, lesson: Lesson, session: StudentSession) -> TeacherEndpoint:
        """The teacher's end, for one stream of one student.

        Raises `UsageError` when the network cannot serve this student.
        """

    @abstractmethod
    def student(self, setup: StudentSetup, connection: Connection) -> StudentEndpoint:
        """The student's end, on one connection."""

    def training(self, attempt: Attempt) -> tuple[Loss, Companion | None]:
        """The loss of a teacher that trains, which also provides what its students wait for, and
        the companion of that training.
        """
        raise ValueError("this exchange needs a frozen teacher")

    def steps_apart(self, plan: Plan) -> int:
        """Steps by which the ends may be apart, beyond the plan's `window` and `staleness`."""
        return 0

    def check_teacher(self, plan: Plan, lesson: Lesson) -> None:  # noqa: B027 (most accept all)
        """Raises `UsageError` when `lesson` cannot serve `plan`; called before the student gets a
        session.
        """


class TeacherEndpoint(ABC):
    """The teacher's end of an exchange, for one stream of one student."""

    map_shapes: Sequence[MapShape] = ()
    """Shapes of the maps that travel with each step, in the order of the student's layers."""

    def __init__(self, lesson: Lesson, session: StudentSession) -> None:
        self.lesson = lesson
        self.session = session
        self.plan = session.plan

    def serve(self, stream: Stream) -> Iterator[wire.Frame]:
        """Reply to the student's requests until it is done."""
        for message in stream.received():
            if message.kind == wire.DONE:
                yield from stream.finish(message.metadata)
                return
            yield from self.reply(stream, message)

    @abstractmethod
    def reply(self, stream: Stream, message: wire.Message) -> Iterator[wire.Frame]:
        """The frames that answer one request. Raises `UsageError` for a message that is no request
        of this exchange.
        """

    def unexpected(self, message: wire.Message) -> UsageError:
        """The error for a message that does not belong to this exchange."""
        return UsageError(
            f"message '{message.kind}' is not one of exchange {self.plan.exchange}: start "
            "both ends again"
        )


class StudentEndpoint(ABC):
    """The student's end of an exchange, on one connection."""

    def __init__(self, setup: StudentSetup, connection: Connection) -> None:
        self.setup = setup
        self.plan = setup.plan
        self.progress = setup.progress
        self.connection = connection
        self.start = 0
        self.map_shapes: Sequence[MapShape] = ()

        self.encoder = setup.plan.new_codec()
        self.decoder = setup.plan.new_codec()
        self.sent_states = dict[int, CodecState]()
        self.received_states = dict[int, CodecState]()

    def begin(self, start: int, map_shapes: Sequence[MapShape], kept: Kept | None) -> None:
        """Continue after step `start`, from the state that was saved there; None at the
        beginning.
        """
        self.start = start
        self.map_shapes = map_shapes
        if kept is not None:
            self.decoder.restore(codec_arrays(kept["decoder"]))
            self.encoder.restore(codec_arrays(kept["encoder"]))

    @abstractmethod
    def receive(self, message: wire.Message) -> None:
        """Take a message from the teacher. Called by the thread that reads the connection, which
        holds the connection's lock.
        """

    @abstractmethod
    def training(self) -> tuple[Loss, Companion | None]:
        """The loss of the student's training, and its companion."""

    def codec_states(self, step: int) -> Kept:
        """The states of both codecs after the messages of `step`, for `begin`."""
        decoder = self.received_states.pop(step, self.decoder.state())
        encoder = self.sent_states.pop(step, self.encoder.state())
        return {"decoder": codec_tensors(decoder), "encoder": codec_tensors(encoder)}
