"""Exchange logits in both directions: teacher and student learn from each other.

Each end sends the logits of a step as soon as it has computed them; no step is requested.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial

import grpc
import torch
from torch import Tensor

from edgecompress.errors import EdgecompressError, UsageError
from edgecompress.methods.distill import mutual
from edgecompress.online import wire
from edgecompress.online.connection import Connection
from edgecompress.online.exchanges.base import Exchange, StudentSetup
from edgecompress.online.exchanges.steps import StepStudent, StepTeacher
from edgecompress.online.lesson import Lesson
from edgecompress.online.mutual import Publisher, RemotePeer
from edgecompress.online.session import StudentSession
from edgecompress.online.stream import Stream
from edgecompress.online.training import Attempt
from edgecompress.train.batches import Batch
from edgecompress.train.fit import Companion, Loss


class MutualTeacher(StepTeacher):
    """Sends the teacher's logits of every step, while another thread receives the student's."""

    def serve(self, stream: Stream) -> Iterator[wire.Frame]:
        """All steps, then the end, once every student of the lesson is done."""
        threading.Thread(target=self._receive_all, args=(stream,), daemon=True).start()
        yield from self.answers(stream, range(self.session.answered + 1, self.plan.steps + 1), b"")

        registry = stream.registry
        while not registry.all_done() and stream.is_current():
            # No student may leave while another one still needs it.
            with registry.changed:
                registry.changed.wait(0.2)
        if self.session.error is not None:
            raise self.session.error
        if self.session.done is not None:
            yield from stream.finish(self.session.done)

    def _receive_all(self, stream: Stream) -> None:
        """Receive the student's messages until its stream ends."""
        try:
            for message in stream.received():
                with stream.registry.changed:
                    self._receive(message)
                    stream.registry.changed.notify_all()
        except grpc.RpcError:
            pass  # the student hung up
        except Exception as error:  # a message may be anything
            known = isinstance(error, EdgecompressError)
            self.session.error = (
                error if known else UsageError(f"not a student's message: {error!r}")  # type: ignore[assignment]
            )
        finally:
            stream.leave()

    def _receive(self, message: wire.Message) -> None:
        if message.kind == wire.DONE:
            self.session.done = message.metadata
        elif message.kind == wire.LOGITS:
            self._take(self.plan.steps_of(message)[-1], message.payload)
        else:
            raise UsageError(
                f"message '{message.kind}' is not one of mutual learning: start both ends again"
            )

    def _take(self, step: int, payload: bytes) -> None:
        """Decode the student's logits of a step."""
        session = self.session
        logits = torch.from_numpy(session.decoder.decode(payload, self.plan.ids(step).numpy()))
        if not bool(torch.isfinite(logits).all()):
            raise UsageError(
                f"the student's logits of step {step} are not finite: lower its --learning-rate"
            )
        self.lesson.traffic.add_payload(len(payload))
        session.peer_logits[step] = logits
        if self.plan.saves_after(step):
            session.received_states[step] = session.decoder.state()
            session.save_codecs(step)


class MutualStudent(StepStudent):
    """Sends its logits of each step, and learns from the teacher's."""

    def training(self) -> tuple[Loss, Companion | None]:
        """The loss of mutual learning, and the companion that computes logits ahead of time."""
        publisher = Publisher(self.plan, self.setup.data, self.send_logits, self.start)
        teacher = RemotePeer(self.progress, lambda step: self.wait_for(step).logits)
        learned = publisher.before(mutual([teacher]))

        def loss(logits: Tensor, batch: Batch) -> Tensor:
            self.progress.advance(batch)
            return learned(logits, batch)

        return loss, publisher

    def send_logits(self, step: int, logits: Tensor) -> None:
        """Send the student's logits (B, K) float32 of `step`."""
        payload = self.encoder.encode(logits.numpy(), self.plan.ids(step).numpy())
        if self.plan.saves_after(step):
            self.sent_states[step] = self.encoder.state()
        self._sent_bytes[step] = len(payload)
        self.connection.send(wire.LOGITS, self.plan.stamp(step), payload=payload)


class BothWays(Exchange):
    """The teacher trains; both ends hold the data."""

    def teacher(self, lesson: Lesson, session: StudentSession) -> MutualTeacher:
        """The end of the teacher's training."""
        return MutualTeacher(lesson, session)

    def student(self, setup: StudentSetup, connection: Connection) -> MutualStudent:
        """The end of the student's training."""
        return MutualStudent(setup, connection)

    def training(self, attempt: Attempt) -> tuple[Loss, Companion | None]:
        """The loss on the labels and on the logits of all students."""
        publisher = Publisher(attempt.plan, attempt.data, attempt.publish, attempt.start)
        students = [
            RemotePeer(attempt, partial(attempt.logits_of, session)) for session in attempt.students
        ]
        return publisher.before(mutual(students)), publisher


EXCHANGE = BothWays()
