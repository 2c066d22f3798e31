"""One connection of a student, as the teacher sees it: from the hello to the end.

Whatever a student sends affects no more than its own stream. How long a student may be silent is
not limited: gRPC's keepalive detects a lost peer, and then the student has left.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator
from typing import TypeVar, cast

import grpc

from edgecompress.errors import UsageError
from edgecompress.online import wire
from edgecompress.online.exchanges import exchange_of
from edgecompress.online.lesson import Lesson
from edgecompress.online.plan import Plan
from edgecompress.online.registry import POLL_SECONDS
from edgecompress.online.session import StudentSession

T = TypeVar("T")
HELLO_SECONDS = 30.0
"""How long a stream may be open without a hello."""
MAX_NAME = 200
"""Characters of a student's name that count."""


class Stream:
    """Serves `lesson` to the student that sends `requests`; `context` is that of the gRPC call."""

    def __init__(
        self, lesson: Lesson, requests: Iterator[wire.Frame], context: grpc.ServicerContext
    ) -> None:
        self.lesson = lesson
        self.registry = lesson.registry
        self._context = context
        self._messages = wire.messages(
            requests, lesson.traffic.add_frame, limit=wire.MAX_REQUEST_BYTES
        )
        self._name = ""
        self._session: StudentSession | None = None
        self._connection = 0
        self._confirmed = False

    @property
    def session(self) -> StudentSession:
        """The student's session. Raises `ValueError` before its hello."""
        if self._session is None:
            raise ValueError("a stream has a session only after the hello")
        return self._session

    def frames(self) -> Iterator[wire.Frame]:
        """The frames that the student receives. An error ends the stream as a message."""
        watchdog = threading.Timer(HELLO_SECONDS, self._context.cancel)
        watchdog.daemon = True
        watchdog.start()
        try:
            hello = next(self._messages, None)
            watchdog.cancel()
            if hello is not None:
                yield from self._serve(hello)
        except grpc.RpcError:
            return
        except Exception as error:  # a message may be anything: it ends this stream, not the lesson
            if isinstance(error, UsageError) and not self._confirmed and self._session is not None:
                self.registry.remove(self._name, self._session)
            yield from self.send(wire.ERROR, metadata=wire.error_metadata(error))
        finally:
            watchdog.cancel()
            self.leave()

    def _serve(self, hello: wire.Message) -> Iterator[wire.Frame]:
        session = self._join(hello)
        if not self._context.add_callback(self.leave):
            return  # the call is over already
        for _ in self.registry.begin(session, self._connection):
            yield from self.send(wire.HEARTBEAT)
        self.lesson.note(f"a student is here, from step {session.answered}")

        endpoint = exchange_of(session.plan).teacher(self.lesson, session)
        self._confirmed = True
        self.registry.confirm(session)
        greeting: wire.Welcome = {
            "start": session.answered,
            "training": self.lesson.trains,
            "maps": [list(shape) for shape in endpoint.map_shapes],
        }
        yield from self.send(wire.HELLO, session.plan.run_stamp(), metadata=greeting)
        yield from endpoint.serve(self)

    def _join(self, hello: wire.Message) -> StudentSession:
        """Open the student's session. Raises `UsageError` when the lesson refuses it."""
        if hello.kind != wire.HELLO:
            raise UsageError(f"the first message is '{hello.kind}': a student says hello first")
        values = cast(wire.Hello, hello.metadata)
        self._name = str(values["name"])[:MAX_NAME]
        plan = Plan.parsed(values["plan"])
        saved_steps = [int(step) for step in values["have"]]
        self.lesson.check(plan)

        instance = str(values["instance"])[:MAX_NAME]
        self._session = self.registry.join(self._name, instance, plan, saved_steps)
        self._connection = self._session.connections
        return self._session

    def received(self) -> Iterator[wire.Message]:
        """The student's messages, until it connects again elsewhere."""
        for message in self._messages:
            if self.session.connections != self._connection:
                return
            yield message

    def send(
        self,
        kind: str,
        stamp: wire.Stamp = wire.NO_STAMP,
        *,
        payload: bytes = b"",
        metadata: wire.Metadata | None = None,
    ) -> Iterator[wire.Frame]:
        """The frames of a message, counted."""
        for frame in wire.frames(kind, stamp, payload=payload, metadata=metadata):
            self.lesson.traffic.add_frame(frame.ByteSize())
            yield frame

    def wait(self, ready: Callable[[], T | None]) -> Generator[wire.Frame, None, T]:
        """Send heartbeats until `ready()` is not None; returns its value.

        Raises `ConnectionLostError` when the student leaves meanwhile.
        """
        begun = time.monotonic()
        while True:
            with self.registry.changed:
                value = ready()
                if value is not None:
                    return value
                self.check()
                self.registry.changed.wait(POLL_SECONDS)
            if time.monotonic() - begun > wire.HEARTBEAT_SECONDS:
                yield from self.send(wire.HEARTBEAT)
                begun = time.monotonic()

    def finish(self, metadata: wire.Metadata) -> Iterator[wire.Frame]:
        """The student is done. The DONE message follows once the teacher's own training has ended,
        which may still need the student.
        """
        with self.registry.changed:
            self.session.done = metadata
            self.registry.changed.notify_all()
        yield from self.wait(lambda: self.lesson.finished or None)
        self.registry.dismiss(self.session)
        steps = {"steps": self.lesson.steps}
        yield from self.send(wire.DONE, self.session.plan.run_stamp(), metadata=steps)

    def is_current(self) -> bool:
        """Is this the student's connection, and without error?"""
        return self.registry.is_current(self.session, self._connection)

    def check(self) -> None:
        """Raises the error of this connection, or `ConnectionLostError` when it is over."""
        self.registry.check(self.session, self._connection)

    def leave(self) -> None:
        """The connection is over."""
        self.registry.leave(self._session, self._connection)
