"""A student's connection to its teacher: frames go out through a queue, messages come in by a
thread of its own.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar, cast

import grpc

from edgecompress.errors import EdgecompressError
from edgecompress.online import wire
from edgecompress.online.plan import Plan
from edgecompress.online.secure import Tls
from edgecompress.online.wire import ConnectionLostError, Message

T = TypeVar("T")
SILENCE_SECONDS = 60.0
"""Seconds without any frame of the teacher, which sends a heartbeat at least every 10 s, after
which a connection counts as lost.
"""


@dataclass(frozen=True)
class Greeting:
    """The teacher's reply to a hello: the step after which both ends continue, and the shapes
    [C, H, W] of the maps that travel.
    """

    start: int
    maps: list[list[int]]


class Connection:
    """One connection of student `name` to the teacher at `target` (host:port). `instance` names the
    process: a student of the same name in another process is another student.

    Use: `meet`, then `listen`, then `send` and `wait_for`, then `end` and `close`.
    """

    def __init__(
        self, target: str, tls: Tls | None, plan: Plan, name: str, instance: str = ""
    ) -> None:
        self.plan = plan
        self.name = name
        self.instance = instance
        options = [*wire.CHANNEL_OPTIONS, ("grpc.max_reconnect_backoff_ms", 2000)]
        self.channel = (
            grpc.insecure_channel(target, options)
            if tls is None
            else grpc.secure_channel(target, tls.channel(), options)
        )
        self._sent = 0
        self._received = 0
        self._outgoing: queue.Queue[wire.Frame | None] = queue.Queue()
        self._incoming: Iterator[Message] = iter(())
        self._arrived = threading.Condition()
        self._error: EdgecompressError | None = None
        self._last_frame = time.monotonic()
        self._ended = False
        self.met = False
        """Has the teacher welcomed the student? What never came up cannot break."""

    def meet(self, saved_steps: list[int], timeout: float) -> Greeting:
        """Say hello: the student can continue after each of `saved_steps`.

        Raises `ConnectionLostError` when nobody answers, `UsageError` when refused.
        """
        stub = self.channel.stream_stream(
            wire.PATH, request_serializer=wire.encode, response_deserializer=wire.decode
        )
        hello: wire.Hello = {
            "name": self.name,
            "instance": self.instance,
            "plan": self.plan.as_dict(),
            "have": saved_steps,
        }
        self.send(wire.HELLO, metadata=hello)
        try:
            grpc.channel_ready_future(self.channel).result(timeout=timeout)
        except grpc.FutureTimeoutError as error:
            raise ConnectionLostError(
                f"the teacher does not answer within {timeout:g} s"
            ) from error

        call = stub(self._requests())
        self._incoming = wire.messages(call, self._count_received)
        metadata = self._first_reply(call).metadata
        if "error" in metadata:
            raise wire.error_of(metadata)
        self.met = True
        welcome = cast(wire.Welcome, metadata)
        return Greeting(int(welcome["start"]), welcome["maps"])

    def _first_reply(self, call: grpc.Call) -> Message:
        """The first message of the teacher; a call without any frame for too long is cancelled."""
        replied = threading.Event()
        self._last_frame = time.monotonic()
        threading.Thread(target=self._cancel_silent, args=(call, replied), daemon=True).start()
        try:
            return next(self._incoming)
        except (grpc.RpcError, StopIteration, ValueError) as error:
            raise ConnectionLostError(f"the teacher hung up: {_reason(error)}") from error
        finally:
            replied.set()

    def _cancel_silent(self, call: grpc.Call, replied: threading.Event) -> None:
        while not replied.wait(1.0):
            if time.monotonic() - self._last_frame > SILENCE_SECONDS:
                call.cancel()
                return

    def listen(self, receive: Callable[[Message], None]) -> None:
        """Pass every message of the teacher to `receive`, in a thread of its own and under the
        connection's lock.
        """
        threading.Thread(target=self._read, args=(receive,), daemon=True).start()

    def _read(self, receive: Callable[[Message], None]) -> None:
        try:
            for message in self._incoming:
                with self._arrived:
                    if message.kind == wire.ERROR:
                        raise wire.error_of(message.metadata)
                    if message.kind == wire.DONE:
                        self._ended = True
                    else:
                        receive(message)
                    self._arrived.notify_all()
            raise ConnectionLostError("the teacher hung up")
        except EdgecompressError as error:
            self._fail(error)
        except (grpc.RpcError, ValueError) as error:
            self._fail(ConnectionLostError(f"the connection broke: {_reason(error)}"))

    def _fail(self, error: EdgecompressError) -> None:
        with self._arrived:
            self._error = error
            self._arrived.notify_all()

    def send(
        self,
        kind: str,
        stamp: wire.Stamp = wire.NO_STAMP,
        *,
        payload: bytes = b"",
        metadata: wire.Metadata | None = None,
    ) -> None:
        """Send a message."""
        for frame in wire.frames(kind, stamp, payload=payload, metadata=metadata):
            self._sent += frame.ByteSize()
            self._outgoing.put(frame)

    def wait_for(self, arrived: dict[int, T], key: int, what: str) -> T:
        """Take the entry `key` out of `arrived`, which the receiver fills; waits.

        Raises `ConnectionLostError` with `what` when the connection breaks, or no frame comes for
        `SILENCE_SECONDS`.
        """
        began = time.monotonic()
        with self._arrived:
            while key not in arrived:
                if self._error is not None:
                    raise self._error
                if time.monotonic() - max(began, self._last_frame) > SILENCE_SECONDS:
                    raise ConnectionLostError(
                        f"{what}, and no other message, within {SILENCE_SECONDS:g} s"
                    )
                self._arrived.wait(0.5)
            return arrived.pop(key)

    def end(self, metadata: wire.Metadata, timeout: float = 30.0) -> bool:
        """Send that the student is done. Did the teacher confirm that the lesson is over?"""
        self.send(wire.DONE, self.plan.run_stamp(), metadata=metadata)
        began = time.monotonic()
        with self._arrived:
            while not self._ended and self._error is None:
                if time.monotonic() - max(began, self._last_frame) >= timeout:
                    break
                self._arrived.wait(0.2)
        return self._ended

    def carried(self) -> int:
        """Bytes of all frames, sent and received, since `take_carried`."""
        return self._sent + self._received

    def take_carried(self) -> int:
        """`carried`, which begins at 0 again."""
        carried = self.carried()
        self._sent = 0
        self._received = 0
        return carried

    def close(self) -> None:
        """Hang up."""
        self._outgoing.put(None)
        self.channel.close()

    def _count_received(self, size: int) -> None:
        self._received += size
        self._last_frame = time.monotonic()

    def _requests(self) -> Iterator[wire.Frame]:
        while (frame := self._outgoing.get()) is not None:
            yield frame


def _reason(error: Exception) -> str:
    details = error.details() if isinstance(error, grpc.Call) else str(error)
    return " ".join(str(details or error).split())[:200]
