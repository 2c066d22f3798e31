"""The student's end: an ordinary training whose teacher answers over the network.

Requests run `window` steps ahead of the training, so that the way there and back is hidden. A connection that breaks raises `BrokenError`
inside the training; `attend` then meets the teacher again, both go back to the newest step that both hold, and the training goes on there.
"""

from __future__ import annotations

import queue
import random
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import grpc
import torch
from torch import Tensor, nn

from edgecompress.data import DataSet
from edgecompress.errors import EdgecompressError, UsageError
from edgecompress.methods.distill import learning_from
from edgecompress.methods.features import FeatureLoss, map_ends
from edgecompress.online import wire
from edgecompress.online.codec import Codec
from edgecompress.online.mutual import Mutual
from edgecompress.online.secure import Tls
from edgecompress.online.session import BrokenError, Plan
from edgecompress.online.shelf import codec_arrays, codec_tensors
from edgecompress.online.teacher import CHANNEL
from edgecompress.train.batches import Batch
from edgecompress.train.fit import Companion, FitResult, Hooks, Kept, Loss, fit
from edgecompress.train.history import EpochRow
from edgecompress.train.settings import FitSettings

T = TypeVar("T")
LARGE_WINDOW = 16
"""Most steps whose pixels or maps may be under way: they are large."""
STEP_DEADLINE = 60.0
"""Seconds without any word of the teacher, which says at least every 10 s that it is there, after which a connection counts as broken."""


@dataclass
class Tally:
    """What the surviving history of a lesson took; `timeline` has a row an epoch.

    `payload_bytes` are those of its steps, each counted once. `wire_bytes` are all frames that this end has sent and received, what was
    said again after a break too; after a kill they go on from what was kept.
    """

    payload_bytes: int = 0
    wire_bytes: int = 0
    samples: int = 0
    steps: int = 0
    breaks: int = 0
    elapsed_s: float = 0.0
    weights_epoch: int = 0
    step_ms: list[float] = field(default_factory=list)
    wait_ms: list[float] = field(default_factory=list)
    timeline: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Answer:
    """What the teacher says of a step: logits (B, K), maps (B, C, H, W) where they travel, and the bytes of both."""

    logits: Tensor
    maps: list[Tensor]
    size: int


class Line:
    """One connection: sends what is wanted, collects what is given. `sent` and `received` count the bytes of all frames."""

    def __init__(self, target: str, tls: Tls | None, plan: Plan, name: str, instance: str = "") -> None:
        self.plan, self.name, self.instance, self.sent, self.received = plan, name, instance, 0, 0
        options = [*CHANNEL, ("grpc.max_reconnect_backoff_ms", 2000)]
        self.channel = grpc.insecure_channel(target, options) if tls is None else grpc.secure_channel(target, tls.channel(), options)
        self._out: queue.Queue[Any] = queue.Queue()
        self._given: dict[int, Answer] = {}
        self._arrived = threading.Condition()
        self._error: EdgecompressError | None = None
        self._heard_at = time.monotonic()
        self.ended: dict[str, Any] | None = None
        self.weights: dict[int, bytes] = {}
        self.ear, self.mouth = (Codec(plan.codec, plan.samples, plan.classes, plan.top_k) for _ in range(2))
        self.listened: dict[int, dict[str, Any]] = {}
        self.spoken: dict[int, dict[str, Any]] = {}
        self.uttered: dict[int, int] = {}
        """Bytes of payload that were sent for each step to come."""
        self.maps: list[list[int]] = []
        self._asked = 0

    def meet(self, have: list[int], state: Callable[[int], Kept | None], timeout: float) -> int:
        """Say hello; the step after which both go on. Raises `BrokenError` when nobody answers, `UsageError` when refused."""
        stub = self.channel.stream_stream(wire.PATH, request_serializer=wire.encode, response_deserializer=wire.decode)
        hello = {"name": self.name, "instance": self.instance, "plan": self.plan.as_dict(), "have": have}
        self._put(wire.HELLO, said=hello)
        try:
            grpc.channel_ready_future(self.channel).result(timeout=timeout)
        except grpc.FutureTimeoutError as error:
            raise BrokenError(f"the teacher does not answer within {timeout:g} s") from error
        call, greeted = stub(self._requests()), threading.Event()
        self._heard_at = time.monotonic()
        threading.Thread(target=self._give_up, args=(call, greeted), daemon=True).start()
        answers = wire.whole(call, self._count)
        try:
            _, _, said = next(answers)
        except (grpc.RpcError, StopIteration, ValueError) as error:
            raise BrokenError(f"the teacher hung up: {_reason(error)}") from error
        finally:
            greeted.set()
        if "error" in said:
            raise (BrokenError if said.get("broken") else UsageError)(said["error"])
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
        """Send the requests of the window after `step` that were not sent yet: step by step where pixels go with them, else together.

        Together means half a window at a time, since a request for each step would weigh as much as a small answer.
        """
        ahead = min(self.plan.window, LARGE_WINDOW) if self.plan.exchange in ("inputs", "features") else self.plan.window
        last = min(step + ahead, self.plan.steps)
        if self.plan.exchange == "inputs":
            while self._asked < last:
                self._asked += 1
                _, pixels = self.plan.pixels(data, self._asked)
                payload = pixels.numpy().tobytes()
                self.uttered[self._asked] = len(payload)
                self._put(wire.WANT, **self.plan.stamp(self._asked), payload=payload)
            return
        if last - self._asked >= max(1, ahead // 2) or (last == self.plan.steps and last > self._asked):
            first, self._asked = self._asked + 1, last
            self._put(wire.WANT, **self.plan.stamp(last, first))

    def say(self, step: int, logits: Tensor) -> None:
        """Send what the student makes of `step`, logits (B, K) float32: mutual learning."""
        payload = self.mouth.encode(logits.numpy(), self.plan.ids(step).numpy())
        if step % self.plan.keep_every == 0:
            self.spoken[step] = self.mouth.state()
        self.uttered[step] = len(payload)
        self._put(wire.SAY, **self.plan.stamp(step), payload=payload)

    def given(self, step: int) -> Answer:
        """What the teacher says of `step`; waits. Raises `BrokenError` when the connection breaks, or nothing at all comes for long."""
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
                    raise BrokenError(f"{what}, and no other word, within {STEP_DEADLINE:g} s")
                self._arrived.wait(0.5)
            return arrived.pop(key)

    def end(self, said: dict[str, Any], timeout: float = 30.0) -> bool:
        """Say that the lesson is over. Has the teacher heard it?"""
        self._put(wire.DONE, run=self.plan.run, said=said)
        deadline = time.monotonic() + timeout
        with self._arrived:
            while self.ended is None and self._error is None and time.monotonic() < deadline:
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
                        raise (BrokenError if said.get("broken") else UsageError)(said.get("error", "the teacher refused"))
                    self._arrived.notify_all()
            raise BrokenError("the teacher hung up")
        except (grpc.RpcError, EdgecompressError, ValueError) as error:
            with self._arrived:
                known = isinstance(error, EdgecompressError)
                self._error = error if known else BrokenError(f"the connection broke: {_reason(error)}")  # type: ignore[assignment]
                self._arrived.notify_all()

    def _take(self, step: int, answer: bytes) -> None:
        """Decode the answer to one step, and keep the codec's state where both ends do."""
        size, ids, maps = len(answer), self.plan.ids(step), list[Any]()
        if self.plan.exchange == "features":
            answer, maps = wire.without_maps(answer, self.maps, len(ids), self.plan.codec)
        logits = torch.from_numpy(self.ear.decode(answer, ids.numpy()))
        self._given[step] = Answer(logits, [torch.from_numpy(one) for one in maps], size)
        if step % self.plan.keep_every == 0:
            self.listened[step] = self.ear.state()


def _reason(error: Any) -> str:
    details = error.details() if hasattr(error, "details") else str(error)
    return " ".join(str(details or error).split())[:200]


class Student:
    """Trains `model` in the lesson that `plan` describes. `cut` are the hooks of a training in which it is pruned, `mentor` the teacher's
    network where its weights travel."""

    def __init__(
        self, model: nn.Module, data: DataSet, settings: FitSettings, plan: Plan, *, name: str = "student", shelf: Path | None = None,
        loss: str = "kl", temperature: float | None = None, alpha: float | None = None, feature_weight: float = 1.0,
        mentor: nn.Module | None = None, cut: Hooks | None = None, on_epoch: Callable[[EpochRow], None] | None = None,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:  # fmt: skip
        self.model, self.data, self.settings, self.plan, self.name, self.note = model, data, settings, plan, name, note
        self.loss, self.temperature, self.alpha, self.feature_weight = loss, temperature, alpha, feature_weight
        self.cut, self.on_epoch = cut or Hooks(), on_epoch
        self.shelf, self.tally = plan.shelf(shelf), Tally()
        self.mentor, self.mentor_epoch = mentor, 0
        self.instance = secrets.token_hex(8)
        self._line: Line | None = None
        self._batch: Batch | None = None
        self._said = Answer(torch.zeros(0), [], 0)
        self._step, self._began, self._last, self._waiting = 0, time.monotonic(), time.monotonic(), 0.0

    def attend(
        self, target: str, tls: Tls | None, patience: float = 60.0, finished: Callable[[FitResult], None] | None = None
    ) -> FitResult:  # fmt: skip
        """Learn to the end, meeting the teacher at `target` (host:port) again after every break.

        `finished` is called with the result before the teacher hears that the lesson is over. Raises `EdgecompressError` when the teacher
        stays away, or no step is gained, for `patience` seconds, `UsageError` when it refuses.
        """
        pristine = {key: value.clone() for key, value in self.model.state_dict().items()}
        result, furthest, since, wait = None, -1, time.monotonic(), 0.2
        while True:
            line = self._line = Line(target, tls, self.plan, self.name, self.instance)
            try:
                start = line.meet(self.shelf.steps(), self.shelf.get, min(5.0, patience))
                wait = 0.2
                if result is None:
                    result = self._learn(line, start, pristine)
                    since = time.monotonic()
                    self._count(line)
                    if finished is not None:
                        finished(result)
                if line.end({"epochs": self.plan.epochs, "steps": self.tally.steps}):
                    return result
                raise BrokenError("the teacher did not hear that the lesson is over")
            except BrokenError as error:
                if result is None:
                    self._count(line)
                    self.tally.breaks += 1
                    if self._step > furthest:  # the teacher was there until now
                        furthest, since = self._step, time.monotonic()
                if time.monotonic() - since > patience:
                    if result is not None:
                        self.note(f"{error}; what was learned is whole")
                        return result
                    raise EdgecompressError(
                        f"{error}; the teacher stayed away, or no step was gained, for {patience:g} s: is {target} right, and is it there?"
                    ) from error
                self.note(f"{error}; meeting again")
                time.sleep(wait * (0.5 + random.random()))
                wait = min(2 * wait, 5.0)
            except UsageError as error:
                if result is None:
                    raise
                self.note(f"{error}; what was learned is whole")
                return result
            finally:
                line.close()

    def _count(self, line: Line) -> None:
        """Add what a line has carried, once."""
        self.tally.wire_bytes += line.sent + line.received
        line.sent = line.received = 0

    def _learn(self, line: Line, start: int, pristine: dict[str, Tensor]) -> FitResult:
        self.shelf.back_to(start)
        self.model.load_state_dict(pristine)
        kept = self.shelf.get(start)
        self._step, self._batch, self._last, self._waiting, self.mentor_epoch = start, None, time.monotonic(), 0.0, 0
        self._recall(Tally(**kept["tally"]) if kept is not None else Tally())

        def keep(state: Kept) -> None:
            step = state["step"]
            codecs = {"ear": line.listened.pop(step, line.ear.state()), "mouth": line.spoken.pop(step, line.mouth.state())}
            tally = replace(self.tally, elapsed_s=time.monotonic() - self._began, wire_bytes=self._carried(line))
            self.shelf.put(step, {**state, **{name: codec_tensors(codec) for name, codec in codecs.items()}, "tally": asdict(tally)})

        def on_epoch(row: EpochRow) -> None:
            self.tally.timeline.append({
                "epoch": row.epoch, "step": self._step, "time_s": round(time.monotonic() - self._began, 3),
                "validation_accuracy": row.validation_accuracy, "payload_bytes": self.tally.payload_bytes,
                "wire_bytes": self._carried(line),
            })  # fmt: skip
            if self.on_epoch is not None:
                self.on_epoch(row)

        loss, companion = self._taught(line, start)
        hooks = replace(
            self.cut, on_epoch=on_epoch, keep=keep, keep_every=self.plan.keep_every, begin=self.shelf.get(start), companion=companion
        )
        return fit(self.model, self.data, loss, self.settings, seed=self.plan.seed, device=torch.device("cpu"), hooks=hooks)

    def _carried(self, line: Line) -> int:
        """Bytes of all frames so far."""
        return self.tally.wire_bytes + line.sent + line.received

    def _recall(self, kept: Tally) -> None:
        """Be as after the step of a kept state; what has travelled since has travelled, and the clock goes on."""
        if not self.tally.step_ms and kept.elapsed_s:  # another process began
            self._began = time.monotonic() - kept.elapsed_s
        now = self.tally
        self.tally = replace(kept, wire_bytes=max(kept.wire_bytes, now.wire_bytes), breaks=max(kept.breaks, now.breaks))

    def _taught(self, line: Line, start: int) -> tuple[Loss, Companion | None]:
        """The loss of this lesson, and what trains beside the student."""
        if self.plan.mutual:
            mutual = Mutual(self.plan, self.data, line.say, lambda step: [self._answer(line, step).logits], start)

            def exchanged(logits: Tensor, batch: Batch) -> Tensor:
                self._advance(batch)
                return mutual(logits, batch)

            return exchanged, mutual
        loss = learning_from(self._targets, self.loss, self.temperature, self.alpha)
        if self.plan.exchange != "features":
            return loss, None
        torch.manual_seed(self.plan.seed)  # for the adapters, which are the same at every try
        ends = list(map_ends(self.model, torch.zeros(1, *self.data.image_shape)))[-len(line.maps) :]
        channels = [shape[0] for shape in line.maps]
        told = FeatureLoss(self.plan.features, ends, self.model, channels, self._maps, loss, self.feature_weight)
        return told, told

    def _targets(self, batch: Batch) -> Tensor:
        """What the teacher says of `batch`, which is the next step."""
        return self._heard(batch).logits

    def _maps(self, batch: Batch, sizes: object) -> Sequence[Tensor]:
        """What the teacher's layers say of it."""
        return self._heard(batch).maps

    def _heard(self, batch: Batch) -> Answer:
        """What is said of a batch; it is waited for once."""
        if batch is not self._batch:
            line = self._line
            assert line is not None
            self._advance(batch)
            if self.plan.exchange == "weights":
                self._said = Answer(self._from_weights(line, batch), [], 0)
            else:
                line.ask_beyond(self._step, self.data)
                self._said = self._answer(line, self._step)
            self._batch = batch
        return self._said

    def _answer(self, line: Line, step: int) -> Answer:
        """The answer to a step, whose payload is counted now, with that of what was sent for it."""
        answer = self._waited(lambda: line.given(step))
        self.tally.payload_bytes += answer.size + line.uttered.pop(step, 0)
        return answer

    def _advance(self, batch: Batch) -> None:
        """The training is at the next step."""
        self._step += 1
        if not torch.equal(batch.ids, self.plan.ids(self._step)):
            raise EdgecompressError(f"step {self._step} trains on other samples than planned: a bug of edgecompress, please report it")
        now = time.monotonic()
        self.tally.step_ms.append(1e3 * (now - self._last))
        self.tally.wait_ms.append(self._waiting)
        self._last, self._waiting = now, 0.0
        self.tally.steps, self.tally.samples = self._step, self.tally.samples + len(batch.ids)

    def _waited(self, given: Callable[[], T]) -> T:
        """What `given` brings; the time until it came counts as waiting, in the step that it delays."""
        began = time.monotonic()
        found = given()
        self._waiting += 1e3 * (time.monotonic() - began)
        return found

    def _from_weights(self, line: Line, batch: Batch) -> Tensor:
        """Logits of the teacher's own weights, which come once an epoch (García González 2022, figure 2.16)."""
        from safetensors.torch import load

        epoch, _ = self.plan.place(self._step)
        if self.mentor is None:
            raise UsageError("exchange weights needs the teacher's network by name: give --teacher-model")
        if self.mentor_epoch != epoch:
            weights = self._waited(lambda: line.weights_of(epoch))
            if epoch > self.tally.weights_epoch:
                self.tally.payload_bytes, self.tally.weights_epoch = self.tally.payload_bytes + len(weights), epoch
            state = load(weights)
            shapes = {name: tuple(value.shape) for name, value in self.mentor.state_dict().items()}
            other = sorted(name for name in {*shapes, *state} if name not in state or shapes.get(name) != tuple(state[name].shape))
            if other:
                raise UsageError(f"the teacher's weights do not fit --teacher-model: {len(other)} tensors differ, first '{other[0]}'")
            self.mentor.load_state_dict(state)
            self.mentor_epoch = epoch
        with torch.no_grad():
            logits: Tensor = self.mentor.eval()(batch.images)
        return logits.float()
