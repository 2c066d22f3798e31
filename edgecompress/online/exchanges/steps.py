"""What the exchanges that answer step by step have in common: logits, inputs, features, mutual."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from edgecompress.errors import UsageError
from edgecompress.methods.sources import Size
from edgecompress.online import wire
from edgecompress.online.codec import Array
from edgecompress.online.exchanges.base import (
    MapShape,
    Outputs,
    StudentEndpoint,
    StudentSetup,
    TeacherEndpoint,
)
from edgecompress.online.stream import Stream
from edgecompress.train.batches import Batch
from edgecompress.train.fit import Companion, Kept, Loss

if TYPE_CHECKING:
    from edgecompress.online.connection import Connection

GROUP_BYTES = 16_000
"""A message of several answers is sent when it is this large."""
GROUP_SECONDS = 0.05
"""A message of several answers is sent when it is this old."""
LARGE_WINDOW = 16
"""Most steps whose pixels or maps may be under way: they are large."""


class StepTeacher(TeacherEndpoint):
    """Answers requests for steps, each with the logits of the step's samples."""

    def reply(self, stream: Stream, message: wire.Message) -> Iterator[wire.Frame]:
        """The answers to the steps of a request."""
        if message.kind != wire.REQUEST:
            raise self.unexpected(message)
        yield from self.answers(stream, self.plan.steps_of(message), message.payload)

    def pixels(self, step: int, payload: bytes) -> Tensor:
        """Pixels (B, C, H, W) uint8 of a step; `payload` is that of the request."""
        if self.lesson.data is None:
            raise UsageError(
                "this teacher has no data: use --exchange inputs, or serve it with --data"
            )
        return self.plan.pixels(self.lesson.data, step)[1]

    def compute(self, step: int, payload: bytes) -> Outputs:
        """The outputs of a frozen network for a step."""
        logits, _ = self.lesson.forward(self.pixels(step, payload))
        return Outputs(logits)

    def pack(self, logits: bytes, maps: Sequence[Array]) -> bytes:
        """The payload of an answer: `logits` as the codec encoded them, and `maps` (B, C, h, w)."""
        return logits

    def answers(self, stream: Stream, steps: range, payload: bytes) -> Iterator[wire.Frame]:
        """The answers to `steps`. A frozen teacher groups several into one message, as long as no
        student waits for it.
        """
        ready = list[bytes]()
        begun = time.monotonic()

        for step in steps:
            while (answer := self._answer(stream, step, payload)) is None:
                yield from stream.send(wire.HEARTBEAT)
            ready.append(answer)
            self.lesson.traffic.add_payload(len(answer))
            if step != steps[-1] and self._may_grow(ready, begun):
                continue

            yield from self._send(stream, step, ready)
            with stream.registry.changed:
                stream.check()
                self.session.answered = step
            ready = []
            begun = time.monotonic()

    def _may_grow(self, ready: Sequence[bytes], begun: float) -> bool:
        """May a message of the answers `ready`, the first of them at time `begun`, take another?"""
        return (
            not self.lesson.trains
            and sum(map(len, ready)) < GROUP_BYTES
            and time.monotonic() - begun <= GROUP_SECONDS
        )

    def _send(self, stream: Stream, step: int, answers: Sequence[bytes]) -> Iterator[wire.Frame]:
        """The message of the `answers` up to `step`."""
        if len(answers) == 1:
            yield from stream.send(wire.ANSWER, self.plan.stamp(step), payload=answers[0])
        else:
            stamp = self.plan.stamp(step, step - len(answers) + 1)
            yield from stream.send(wire.ANSWER, stamp, payload=wire.join_answers(answers))

    def _answer(self, stream: Stream, step: int, payload: bytes) -> bytes | None:
        """The payload of the answer to a step; None while the training has not reached it."""
        outputs = self.lesson.outputs(stream, step, lambda: self.compute(step, payload))
        if outputs is None:
            return None
        session = self.session
        with stream.registry.changed:
            stream.check()  # another stream of this student may have replaced the codec
            logits = session.encoder.encode(outputs.logits, self.plan.ids(step).numpy())
            if self.plan.saves_after(step):
                session.sent_states[step] = session.encoder.state()
                session.save_codecs(step)
        return self.pack(logits, outputs.maps)


@dataclass(frozen=True)
class Answer:
    """The teacher's answer to a step: logits (B, K), maps (B, C, H, W) where they travel, and the
    bytes of both.
    """

    logits: Tensor
    maps: list[Tensor]
    size: int


class StepStudent(StudentEndpoint):
    """Requests steps ahead of the training, and is the source of what the student learns from: the
    logits and maps of the answers.

    `logits` and `maps` give the answer to the batch of the next step; both wait for the same one.
    """

    max_window: int | None = None

    def __init__(self, setup: StudentSetup, connection: Connection) -> None:
        super().__init__(setup, connection)
        self._requested = 0
        self._answers = dict[int, Answer]()
        self._sent_bytes = dict[int, int]()
        """Bytes of payload that were sent for each step to come."""
        self._batch: Batch | None = None
        self._current = Answer(torch.zeros(0), [], 0)

    def begin(self, start: int, map_shapes: Sequence[MapShape], kept: Kept | None) -> None:
        """Continue after step `start`: nothing beyond it is requested yet."""
        super().begin(start, map_shapes, kept)
        self._requested = start

    def training(self) -> tuple[Loss, Companion | None]:
        """The loss on the logits and labels."""
        return self.setup.objective.learning_from(self), None

    def logits(self, batch: Batch) -> Tensor:
        """The teacher's logits (B, K) of `batch`, which is that of the next step."""
        return self._answer_to(batch).logits

    def maps(self, batch: Batch, sizes: Sequence[Size]) -> Sequence[Tensor]:
        """The teacher's maps of `batch`, each (B, C, h, w), which the teacher has reduced for the
        sizes in the plan.
        """
        return self._answer_to(batch).maps

    def _answer_to(self, batch: Batch) -> Answer:
        if batch is not self._batch:
            self.progress.advance(batch)
            self._request_ahead(self.progress.step)
            self._current = self.wait_for(self.progress.step)
            self._batch = batch
        return self._current

    def wait_for(self, step: int) -> Answer:
        """The answer to a step, whose payload counts now, with that of its request.

        Raises `ConnectionLostError` when the connection breaks, or is silent for too long.
        """
        answer = self.progress.waited(
            lambda: self.connection.wait_for(self._answers, step, f"no answer for step {step}")
        )
        self.progress.tally.payload_bytes += answer.size + self._sent_bytes.pop(step, 0)
        return answer

    def _request_ahead(self, step: int) -> None:
        """Send the requests of the window after `step` that were not sent yet."""
        ahead = min(self.plan.window, self.max_window or self.plan.window)
        self._requested = self.request(self._requested, min(step + ahead, self.plan.steps), ahead)

    def request(self, done: int, last: int, ahead: int) -> int:
        """Send requests for the steps after `done` up to `last`, in a window of `ahead` steps;
        returns the last step that was requested.

        Half a window at a time, since a request per step would weigh as much as a small answer.
        """
        at_end = last == self.plan.steps and last > done
        if last - done < max(1, ahead // 2) and not at_end:
            return done
        self.connection.send(wire.REQUEST, self.plan.stamp(last, done + 1))
        return last

    def receive(self, message: wire.Message) -> None:
        """Decode the answers of a message."""
        if message.kind != wire.ANSWER:
            return
        steps = self.plan.steps_of(message)
        payloads = wire.split_answers(message.payload) if message.first else [message.payload]
        for step, payload in zip(steps, payloads, strict=True):
            self._take(step, payload)

    def unpack(self, payload: bytes, count: int) -> tuple[bytes, list[Array]]:
        """(encoded logits, maps (count, C, h, w) float32) of an answer for `count` samples; the
        inverse of the teacher's `pack`.
        """
        return payload, []

    def _take(self, step: int, payload: bytes) -> None:
        """Decode the answer to one step, and save the codec's state where both ends do."""
        ids = self.plan.ids(step).numpy()
        encoded, maps = self.unpack(payload, len(ids))
        logits = torch.from_numpy(self.decoder.decode(encoded, ids))
        tensors = [torch.from_numpy(one) for one in maps]
        self._answers[step] = Answer(logits, tensors, len(payload))
        if self.plan.saves_after(step):
            self.received_states[step] = self.decoder.state()
