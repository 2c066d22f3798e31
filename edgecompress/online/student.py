"""The student's end: an ordinary training whose teacher answers over the network.

Requests run `window` steps ahead of the training, so that the way there and back is hidden. A connection that breaks raises `BrokenError`
inside the training; `attend` then meets the teacher again, both go back to the newest step that both hold, and the training goes on there.
"""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import torch
from torch import Tensor, nn

from edgecompress.data import DataSet
from edgecompress.errors import EdgecompressError, UsageError
from edgecompress.methods.distill import learning_from
from edgecompress.online import wire
from edgecompress.online.codec import Codec
from edgecompress.online.secure import Tls
from edgecompress.online.session import BrokenError, Plan, Shelf, codec_of, with_codec
from edgecompress.online.teacher import CHANNEL
from edgecompress.train.batches import Batch
from edgecompress.train.fit import FitResult, Hooks, Kept, fit
from edgecompress.train.history import EpochRow
from edgecompress.train.settings import FitSettings

PIXEL_WINDOW = 16
"""Most steps whose pixels may be under way: they are large."""
STEP_DEADLINE = 60.0
"""Seconds to wait for one step's answer."""


@dataclass
class Tally:
    """What the surviving history of a lesson took; `timeline` has a row an epoch."""

    payload_bytes: int = 0
    wire_bytes: int = 0
    samples: int = 0
    steps: int = 0
    breaks: int = 0
    step_ms: list[float] = field(default_factory=list)
    wait_ms: list[float] = field(default_factory=list)
    timeline: list[dict[str, Any]] = field(default_factory=list)


class Line:
    """One connection: sends what is wanted, collects what is given."""

    def __init__(self, target: str, tls: Tls | None, plan: Plan, name: str) -> None:
        self.plan, self.name, self.tally_wire, self.tally_payload = plan, name, 0, 0
        options = [*CHANNEL, ("grpc.max_reconnect_backoff_ms", 2000)]
        self.channel = grpc.insecure_channel(target, options) if tls is None else grpc.secure_channel(target, tls.channel(), options)
        self._out: queue.Queue[Any] = queue.Queue()
        self._given: dict[int, Tensor] = {}
        self._arrived = threading.Condition()
        self._error: EdgecompressError | None = None
        self.ended: dict[str, Any] | None = None
        self.weights: dict[int, bytes] = {}
        self.codec = Codec(plan.codec, plan.samples, plan.classes, plan.top_k)
        self.codecs: dict[int, dict[str, Any]] = {}
        self._asked = 0

    def meet(self, have: list[int], state: Callable[[int], Kept | None], timeout: float) -> int:
        """Say hello; the step after which both go on. Raises `BrokenError` when nobody answers, `UsageError` when refused."""
        stub = self.channel.stream_stream(wire.PATH, request_serializer=wire.encode, response_deserializer=wire.decode)
        self._put(wire.HELLO, said={"name": self.name, "plan": self.plan.as_dict(), "have": have})
        try:
            grpc.channel_ready_future(self.channel).result(timeout=timeout)
        except grpc.FutureTimeoutError as error:
            raise BrokenError(f"the teacher does not answer within {timeout:g} s") from error
        answers = wire.whole(stub(self._requests()), self._count)
        try:
            _, _, said = next(answers)
        except (grpc.RpcError, StopIteration) as error:
            raise BrokenError(f"the teacher hung up: {_reason(error)}") from error
        if "error" in said:
            raise (BrokenError if said.get("broken") else UsageError)(said["error"])
        start = int(said["start"])
        kept = state(start)
        if kept is not None:
            self.codec.restore(codec_of(kept))
        self._asked = start
        threading.Thread(target=self._read, args=(answers,), daemon=True).start()
        return start

    def ask_beyond(self, step: int, data: DataSet) -> None:
        """Send the requests of the window after `step` that were not sent yet: step by step where pixels go with them, else together.

        Together means half a window at a time, since a request for each step would weigh as much as a small answer.
        """
        ahead = min(self.plan.window, PIXEL_WINDOW) if self.plan.exchange == "inputs" else self.plan.window
        last = min(step + ahead, self.plan.steps)
        if self.plan.exchange == "inputs":
            while self._asked < last:
                self._asked += 1
                ids, pixels = self.plan.pixels(data, self._asked)
                payload = pixels.numpy().tobytes()
                self.tally_payload += len(payload)
                self._put(wire.WANT, run=self.plan.run, step=self._asked, digest=self.plan.digest(self._asked, ids), payload=payload)
            return
        if last - self._asked >= max(1, self.plan.window // 2) or (last == self.plan.steps and last > self._asked):
            first, self._asked = self._asked + 1, last
            self._put(wire.WANT, run=self.plan.run, first=first, step=last, digest=self.plan.digest(last, self.plan.ids(last)))

    def given(self, step: int) -> Tensor:
        """The teacher's logits (B, K) of `step`; waits. Raises `BrokenError` when the connection breaks or the deadline passes."""
        deadline = time.monotonic() + STEP_DEADLINE
        with self._arrived:
            while step not in self._given:
                if self._error is not None:
                    raise self._error
                if time.monotonic() > deadline:
                    raise BrokenError(f"no answer for step {step} within {STEP_DEADLINE:g} s")
                self._arrived.wait(0.5)
            return self._given.pop(step)

    def weights_of(self, epoch: int) -> bytes:
        """The teacher's state dict at `epoch`, as safetensors."""
        self._put(wire.WEIGHTS, run=self.plan.run, epoch=epoch)
        deadline = time.monotonic() + STEP_DEADLINE
        with self._arrived:
            while epoch not in self.weights:
                if self._error is not None:
                    raise self._error
                if time.monotonic() > deadline:
                    raise BrokenError(f"no weights of epoch {epoch} within {STEP_DEADLINE:g} s")
                self._arrived.wait(0.5)
            return self.weights.pop(epoch)

    def end(self, said: dict[str, Any], timeout: float = 30.0) -> None:
        """Say that the lesson is over, and wait until the teacher has heard it."""
        self._put(wire.DONE, run=self.plan.run, said=said)
        deadline = time.monotonic() + timeout
        with self._arrived:
            while self.ended is None and self._error is None and time.monotonic() < deadline:
                self._arrived.wait(0.2)

    def close(self) -> None:
        """Hang up."""
        self._out.put(None)
        self.channel.close()

    def _put(self, kind: str, **values: Any) -> None:
        for frame in wire.frames(kind, **values):
            self.tally_wire += frame.ByteSize()
            self._out.put(frame)

    def _count(self, size: int) -> None:
        self.tally_wire += size

    def _requests(self) -> Iterator[Any]:
        while (frame := self._out.get()) is not None:
            yield frame

    def _read(self, answers: Iterator[Any]) -> None:
        """Collect answers until the stream ends, in a thread of its own."""
        try:
            for frame, payload, said in answers:
                with self._arrived:
                    if frame.kind == wire.GIVE:
                        ids = self.plan.ids(frame.step)
                        if frame.digest != self.plan.digest(frame.step, ids):
                            raise UsageError(f"the teacher answered step {frame.step} for other samples: give both the same --data")
                        self.tally_payload += len(payload)
                        self._given[frame.step] = torch.from_numpy(self.codec.decode(payload, ids.numpy()))
                        if frame.step % self.plan.keep_every == 0:
                            self.codecs[frame.step] = self.codec.state()
                    elif frame.kind == wire.WEIGHTS:
                        self.tally_payload += len(payload)
                        self.weights[frame.epoch] = payload
                    elif frame.kind == wire.DONE:
                        self.ended = said
                    elif frame.kind == wire.ERROR:
                        raise (BrokenError if said.get("broken") else UsageError)(said.get("error", "the teacher refused"))
                    self._arrived.notify_all()
            raise BrokenError("the teacher hung up")
        except (grpc.RpcError, EdgecompressError, ValueError) as error:
            with self._arrived:
                known = isinstance(error, EdgecompressError)
                self._error = error if known else BrokenError(f"the connection broke: {_reason(error)}")  # type: ignore[assignment]
                self._arrived.notify_all()


def _reason(error: Any) -> str:
    details = error.details() if hasattr(error, "details") else str(error)
    return " ".join(str(details or error).split())[:200]


class Student:
    """Trains `model` in the lesson that `plan` describes."""

    def __init__(
        self, model: nn.Module, data: DataSet, settings: FitSettings, plan: Plan, *, name: str = "student", shelf: Path | None = None,
        loss: str = "kl", temperature: float | None = None, alpha: float | None = None, on_epoch: Callable[[EpochRow], None] | None = None,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:  # fmt: skip
        self.model, self.data, self.settings, self.plan, self.name, self.note = model, data, settings, plan, name, note
        self.loss, self.temperature, self.alpha, self.on_epoch = loss, temperature, alpha, on_epoch
        self.shelf, self.tally = Shelf(shelf), Tally()
        self.mentor: nn.Module | None = None
        self.mentor_epoch = 0
        self._line: Line | None = None
        self._step, self._began, self._last = 0, time.monotonic(), time.monotonic()

    def attend(self, target: str, tls: Tls | None, patience: float = 60.0) -> FitResult:
        """Learn to the end, meeting the teacher at `target` (host:port) again after every break for up to `patience` seconds.

        Raises `EdgecompressError` when the teacher stays away, `UsageError` when it refuses.
        """
        pristine = {key: value.clone() for key, value in self.model.state_dict().items()}
        alone_since, wait = time.monotonic(), 0.2
        while True:
            line, met = Line(target, tls, self.plan, self.name), False
            self._line = line
            try:
                start = line.meet(self.shelf.steps(), self.shelf.get, min(5.0, patience))
                met, wait = True, 0.2
                result = self._learn(line, start, pristine)
                line.end({"epochs": self.plan.epochs, "steps": self.tally.steps})
                self._count(line)
                return result
            except BrokenError as error:
                self._count(line)
                if met:  # the teacher was there until now
                    alone_since = time.monotonic()
                if time.monotonic() - alone_since > patience:
                    raise EdgecompressError(
                        f"{error}; the teacher stayed away for {patience:g} s: is {target} right, and is it there?"
                    ) from error
                self.tally.breaks += 1
                self.note(f"{error}; meeting again")
                time.sleep(wait * (0.5 + random.random()))
                wait = min(2 * wait, 5.0)
            finally:
                line.close()

    def _count(self, line: Line) -> None:
        self.tally.payload_bytes += line.tally_payload
        self.tally.wire_bytes += line.tally_wire

    def _learn(self, line: Line, start: int, pristine: dict[str, Tensor]) -> FitResult:
        self.shelf.back_to(start)
        self.model.load_state_dict(pristine)
        self._step, self._last = start, time.monotonic()
        kept = self.shelf.get(start)
        for name in ("step_ms", "wait_ms"):
            setattr(self.tally, name, getattr(self.tally, name)[:start])
        self.tally.timeline = [row for row in self.tally.timeline if row["step"] <= start]
        self.tally.steps = start
        self.tally.samples = sum(len(self.plan.ids(step)) for step in range(1, start + 1))

        def keep(state: Kept) -> None:
            step = state["step"]
            self.shelf.put(step, with_codec(state, line.codecs.pop(step, line.codec.state())))

        def on_epoch(row: EpochRow) -> None:
            self.tally.timeline.append({
                "epoch": row.epoch, "step": self._step, "time_s": round(time.monotonic() - self._began, 3),
                "validation_accuracy": row.validation_accuracy, "payload_bytes": self.tally.payload_bytes + line.tally_payload,
                "wire_bytes": self.tally.wire_bytes + line.tally_wire,
            })  # fmt: skip
            if self.on_epoch is not None:
                self.on_epoch(row)

        hooks = Hooks(on_epoch=on_epoch, keep=keep, keep_every=self.plan.keep_every, begin=kept)
        loss = learning_from(self._targets, self.loss, self.temperature, self.alpha)
        return fit(self.model, self.data, loss, self.settings, seed=self.plan.seed, device=torch.device("cpu"), hooks=hooks)

    def _targets(self, batch: Batch) -> Tensor:
        """What the teacher says of `batch`, which is the next step."""
        line = self._line
        assert line is not None
        self._step += 1
        if not torch.equal(batch.ids, self.plan.ids(self._step)):
            raise EdgecompressError(f"step {self._step} trains on other samples than planned: a bug of edgecompress, please report it")
        began = time.monotonic()
        said = self._from_weights(line, batch) if self.plan.exchange == "weights" else self._from_line(line)
        now = time.monotonic()
        self.tally.wait_ms.append(1e3 * (now - began))
        self.tally.step_ms.append(1e3 * (now - self._last))
        self._last = now
        self.tally.steps, self.tally.samples = self._step, self.tally.samples + len(batch.ids)
        return said

    def _from_line(self, line: Line) -> Tensor:
        line.ask_beyond(self._step, self.data)
        return line.given(self._step)

    @torch.no_grad()
    def _from_weights(self, line: Line, batch: Batch) -> Tensor:
        """Logits of the teacher's own weights, which come once an epoch (García González 2022, figure 2.16)."""
        from safetensors.torch import load

        epoch, _ = self.plan.place(self._step)
        if self.mentor is None:
            raise UsageError("exchange weights needs the teacher's network by name: give --teacher-model")
        if self.mentor_epoch != epoch:
            self.mentor.load_state_dict(load(line.weights_of(epoch)))
            self.mentor_epoch = epoch
        logits: Tensor = self.mentor.eval()(batch.images)
        return logits.float()
