"""A student's connection: what is wanted goes out, what is given comes in, by a thread of its
own.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
import torch
from torch import Tensor

from edgecompress.data import DataSet
from edgecompress.errors import EdgecompressError, UsageError
from edgecompress.online import wire
from edgecompress.online.codec import Codec
from edgecompress.online.plan import ConnectionLostError, Plan
from edgecompress.online.secure import Tls
from edgecompress.online.store import codec_arrays
from edgecompress.train.fit import Kept

T = TypeVar("T")
LARGE_WINDOW = 16
"""Most steps whose pixels or maps may be under way: they are large."""
STEP_DEADLINE = 60.0
"""Seconds without any word of the teacher, which says at least every 10 s that it is there, after
which a connection counts as broken.
"""


@dataclass(frozen=True)
class Answer:
    """What the teacher says of a step: logits (B, K), maps (B, C, H, W) where they travel, and the
    bytes of both.
    """

    logits: Tensor
    maps: list[Tensor]
    size: int


class Connection:
    """One connection: sends what is wanted, collects what is given. `sent` and `received` count the
    bytes of all frames.
    """

    def __init__(
        self, target: str, tls: Tls | None, plan: Plan, name: str, instance: str = ""
    ) -> None:
        self.plan, self.name, self.instance, self.sent, self.received = plan, name, instance, 0, 0
        options = [*wire.CHANNEL, ("grpc.max_reconnect_backoff_ms", 2000)]
        self.channel = (
            grpc.insecure_channel(target, options)
            if tls is None
            else grpc.secure_channel(target, tls.channel(), options)
        )
        self._out: queue.Queue[Any] = queue.Queue()
        self._given: dict[int, Answer] = {}
        self._arrived = threading.Condition()
        self._error: EdgecompressError | None = None
        self._heard_at = time.monotonic()
        self.ended: dict[str, Any] | None = None
        self.weights: dict[int, bytes] = {}
        self.ear, self.mouth = (
            Codec(plan.codec, plan.samples, plan.classes, plan.top_k) for _ in range(2)
        )
        self.listened: dict[int, dict[str, Any]] = {}
        self.spoken: dict[int, dict[str, Any]] = {}
        self.uttered: dict[int, int] = {}
        """Bytes of payload that were sent for each step to come."""
        self.maps: list[list[int]] = []
        self._asked = 0

    def meet(self, have: list[int], state: Callable[[int], Kept | None], timeout: float) -> int:
        """Say hello; the step after which both continue.

        Raises `ConnectionLostError` when nobody answers, `UsageError` when refused.
        """
        stub = self.channel.stream_stream(
            wire.PATH, request_serializer=wire.encode, response_deserializer=wire.decode
        )
        hello = {
            "name": self.name,
            "instance": self.instance,
            "plan": self.plan.as_dict(),
            "have": have,
        }
        self._put(wire.HELLO, said=hello)
        try:
            grpc.channel_ready_future(self.channel).result(timeout=timeout)
        except grpc.FutureTimeoutError as error:
            raise ConnectionLostError(
                f"the teacher does not answer within {timeout:g} s"
            ) from error
        call, greeted = stub(self._requests()), threading.Event()
        self._heard_at = time.monotonic()
        threading.Thread(target=self._give_up, args=(call, greeted), daemon=True).start()
        answers = wire.whole(call, self._count)
        try:
            _, _, said = next(answers)
        except (grpc.RpcError, StopIteration, ValueError) as error:
            raise ConnectionLostError(f"the teacher hung up: {_reason(error)}") from error
        finally:
            greeted.set()
        if "error" in said:
            raise (ConnectionLostError if said.get("broken") else UsageError)(said["error"])
        start, self.maps = int(said["start"]), said["maps"]
        kept = state(start)
        if kept is not None:
            self.ear.restore(codec_arrays(kept["ear"]))
            self.mouth.restore(codec_arrays(kept["mouth"]))
        self._asked = start
        threading.Thread(target=self._read, args=(answers,), daemon=True).start()
        return start

    def _give_up(self, call: Any, greeted: threading.Event) -> None:
        """End a call whose other end says nothing at all."""
        while not greeted.wait(1.0):
            if time.monotonic() - self._heard_at > STEP_DEADLINE:
                call.cancel()
                return

    def ask_beyond(self, step: int, data: DataSet) -> None:
        """Send the requests of the window after `step` that were not sent yet: step by step where
        pixels go with them, else together.

        Together means half a window at a time, since a request for each step would weigh as much as
        a small answer.
        """
        ahead = (
            min(self.plan.window, LARGE_WINDOW)
            if self.plan.exchange in ("inputs", "features")
            else self.plan.window
        )
        last = min(step + ahead, self.plan.steps)
        if self.plan.exchange == "inputs":
            while self._asked < last:
                self._asked += 1
                _, pixels = self.plan.pixels(data, self._asked)
                payload = pixels.numpy().tobytes()
                self.uttered[self._asked] = len(payload)
                self._put(wire.WANT, **self.plan.stamp(self._asked), payload=payload)
            return
        if last - self._asked >= max(1, ahead // 2) or (
            last == self.plan.steps and last > self._asked
        ):
            first, self._asked = self._asked + 1, last
            self._put(wire.WANT, **self.plan.stamp(last, first))

    def say(self, step: int, logits: Tensor) -> None:
        """Send what the student makes of `step`, logits (B, K) float32: mutual learning."""
        payload = self.mouth.encode(logits.numpy(), self.plan.ids(step).numpy())
        if self.plan.keeps(step):
            self.spoken[step] = self.mouth.state()
        self.uttered[step] = len(payload)
        self._put(wire.SAY, **self.plan.stamp(step), payload=payload)

    def given(self, step: int) -> Answer:
        """The teacher's answer to `step`; waits.

        Raises `ConnectionLostError` when the connection breaks, or nothing at all comes for long.
        """
        return self._wait_for(self._given, step, f"no answer for step {step}")

    def weights_of(self, epoch: int) -> bytes:
        """The teacher's state dict at `epoch`, as safetensors; waits like `given`."""
        self._put(wire.WEIGHTS, run=self.plan.run, epoch=epoch)
        return self._wait_for(self.weights, epoch, f"no weights of epoch {epoch}")

    def _wait_for(self, arrived: dict[int, T], key: int, what: str) -> T:
        began = time.monotonic()
        with self._arrived:
            while key not in arrived:
                if self._error is not None:
                    raise self._error
                if time.monotonic() - max(began, self._heard_at) > STEP_DEADLINE:
                    raise ConnectionLostError(
                        f"{what}, and no other word, within {STEP_DEADLINE:g} s"
                    )
                self._arrived.wait(0.5)
            return arrived.pop(key)

    def end(self, said: dict[str, Any], timeout: float = 30.0) -> bool:
        """Say that the lesson is over. Has the teacher heard it?"""
        self._put(wire.DONE, run=self.plan.run, said=said)
        began = time.monotonic()
        with self._arrived:
            while (
                self.ended is None
                and self._error is None
                and time.monotonic() - max(began, self._heard_at) < timeout
            ):
                self._arrived.wait(0.2)
        return self.ended is not None

    def close(self) -> None:
        """Hang up."""
        self._out.put(None)
        self.channel.close()

    def _put(self, kind: str, **values: Any) -> None:
        for frame in wire.frames(kind, **values):
            self.sent += frame.ByteSize()
            self._out.put(frame)

    def _count(self, size: int) -> None:
        self.received += size
        self._heard_at = time.monotonic()

    def _requests(self) -> Iterator[Any]:
        while (frame := self._out.get()) is not None:
            yield frame

    def _read(self, answers: Iterator[Any]) -> None:
        """Collect answers until the stream ends, in a thread of its own."""
        try:
            for frame, payload, said in answers:
                with self._arrived:
                    if frame.kind == wire.GIVE:
                        steps = self.plan.check(frame)
                        parts = wire.parted(payload) if frame.first else [payload]
                        for step, answer in zip(steps, parts, strict=True):
                            self._take(step, answer)
                    elif frame.kind == wire.WEIGHTS:
                        self.weights[frame.epoch] = payload
                    elif frame.kind == wire.DONE:
                        self.ended = said
                    elif frame.kind == wire.ERROR:
                        raise (ConnectionLostError if said.get("broken") else UsageError)(
                            said.get("error", "the teacher refused")
                        )
                    self._arrived.notify_all()
            raise ConnectionLostError("the teacher hung up")
        except (grpc.RpcError, EdgecompressError, ValueError) as error:
            with self._arrived:
                if isinstance(error, EdgecompressError):
                    self._error = error
                else:
                    self._error = ConnectionLostError(f"the connection broke: {_reason(error)}")
                self._arrived.notify_all()

    def _take(self, step: int, answer: bytes) -> None:
        """Decode the answer to one step, and keep the codec's state where both ends do."""
        size, ids, maps = len(answer), self.plan.ids(step), list[Any]()
        if self.plan.exchange == "features":
            answer, maps = wire.without_maps(answer, self.maps, len(ids), self.plan.codec)
        logits = torch.from_numpy(self.ear.decode(answer, ids.numpy()))
        self._given[step] = Answer(logits, [torch.from_numpy(one) for one in maps], size)
        if self.plan.keeps(step):
            self.listened[step] = self.ear.state()


def _reason(error: Any) -> str:
    details = error.details() if hasattr(error, "details") else str(error)
    return " ".join(str(details or error).split())[:200]
