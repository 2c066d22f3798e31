"""The teacher's end: serves what it says of each step's samples to the students that connect; may train at the same time.

A teacher that stands still answers each student by itself. One that trains goes through the steps once for all its students, `publish`es
its logits at each step before it learns from it, and waits for the slowest.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import torch
from torch import Tensor, nn

from edgecompress.data import DataSet, Preprocess
from edgecompress.errors import EdgecompressError, UsageError
from edgecompress.online import wire
from edgecompress.online.codec import Codec
from edgecompress.online.secure import Tls
from edgecompress.online.session import BrokenError, Plan, Shelf, check_plan, newest_common
from edgecompress.train.batches import Batch, compact
from edgecompress.train.fit import Hooks, Kept, Loss, fit, label_loss
from edgecompress.train.settings import FitSettings

CHANNEL = (
    ("grpc.keepalive_time_ms", 10_000), ("grpc.keepalive_timeout_ms", 10_000), ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000), ("grpc.enable_http_proxy", 0), ("grpc.http2.max_pings_without_data", 0),
)  # fmt: skip
PATIENCE = 120.0
"""Seconds that a training teacher waits for a student before the lesson has failed."""


@dataclass
class Pupil:
    """A student in a lesson: what waits for it, and how it ended."""

    plan: Plan
    codec: Codec
    waiting: queue.Queue[tuple[int, Any]] = field(default_factory=lambda: queue.Queue(16))
    codecs: dict[int, dict[str, Any]] = field(default_factory=dict)
    start: int = 0
    connected: bool = False
    done: dict[str, Any] | None = None
    meetings: int = 0


class Teacher:
    """Serves one lesson to `students` students. `train` are the settings of its own training, None for a teacher that stands still."""

    def __init__(
        self, model: nn.Module, data: DataSet, *, preprocess: Preprocess | None = None, train: FitSettings | None = None, students: int = 1,
        shelf: Path | None = None, note: Callable[[str], None] = lambda _: None,
    ) -> None:  # fmt: skip
        self.model, self.data, self.preprocess = model.eval(), data, preprocess or data.preprocess
        self.train, self.students, self.note = train, students, note
        self.shelf = Shelf(shelf)
        self.pupils: dict[str, Pupil] = {}
        self.failed: str | None = None
        self._lock, self._changed = threading.Lock(), threading.Condition()
        self._generation = 0
        self.steps, self.payload_bytes, self.wire_bytes = 0, 0, 0

    # the stream of one student

    def attend(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:
        """One student's stream. Errors of ours are told to it in words."""
        messages = wire.whole(requests, self._count)
        name = ""
        try:
            _, _, said = next(messages)
            name, plan = said["name"], Plan(**said["plan"])
            pupil = self._meet(name, plan, said["have"])
            yield from self._sent(wire.HELLO, run=plan.run, said={"start": pupil.start, "training": self.train is not None})
            yield from self._answers(pupil, messages)
        except (EdgecompressError, TypeError, KeyError, ValueError, StopIteration) as error:
            text = str(error) if isinstance(error, EdgecompressError) else f"not a student's message: {error!r}"
            yield from self._sent(wire.ERROR, said={"error": text, "broken": isinstance(error, BrokenError)})
        finally:
            self._leave(name)

    def _answers(self, pupil: Pupil, messages: Iterator[Any]) -> Iterator[Any]:
        plan, meeting = pupil.plan, pupil.meetings
        for frame, payload, said in messages:
            if pupil.meetings != meeting:
                return  # it has connected again elsewhere
            if frame.kind == wire.DONE:
                with self._changed:
                    pupil.done = said
                    self._changed.notify_all()
                yield from self._sent(wire.DONE, run=plan.run, said={"steps": self.steps})
                return
            if frame.kind == wire.WEIGHTS:
                yield from self._sent(wire.WEIGHTS, run=plan.run, epoch=frame.epoch, payload=self._weights())
                continue
            if frame.kind != wire.WANT or frame.run != plan.run:
                raise UsageError(f"message '{frame.kind}' of run '{frame.run}' in run '{plan.run}': start both ends again")
            if frame.digest != plan.digest(frame.step, plan.ids(frame.step)):
                raise UsageError(f"step {frame.step} has other samples here than at the student: give both the same --data and --seed")
            for step in range(frame.first or frame.step, frame.step + 1):
                yield from self._given(pupil, step, payload, meeting)

    def _given(self, pupil: Pupil, step: int, payload: bytes, meeting: int) -> Iterator[Any]:
        """The answer to one step."""
        plan = pupil.plan
        ids = plan.ids(step)
        data = pupil.codec.encode(self._of_step(pupil, step, payload, meeting), ids.numpy())
        if step % plan.keep_every == 0:
            pupil.codecs[step] = pupil.codec.state()
        self.payload_bytes += len(data)
        yield from self._sent(wire.GIVE, step=step, digest=plan.digest(step, ids), payload=data)

    def _of_step(self, pupil: Pupil, step: int, payload: bytes, meeting: int) -> Any:
        """Logits (B, K) float32 of a step: asked of the model here, or published by the training."""
        if self.train is not None:
            deadline = time.monotonic() + PATIENCE
            while time.monotonic() < deadline and pupil.meetings == meeting:
                with contextlib.suppress(queue.Empty):
                    at, logits = pupil.waiting.get(timeout=0.2)
                    if at == step:
                        return logits
            raise BrokenError(f"the teacher's training did not reach step {step} in {PATIENCE:g} s")
        plan = pupil.plan
        if plan.exchange == "inputs":
            pixels = torch.frombuffer(bytearray(payload), dtype=torch.uint8).reshape(-1, *self.data.native_shape)
        else:
            _, pixels = plan.pixels(self.data, step)
        with self._lock, torch.no_grad():
            self.steps += 1
            return self.model(compact(self.preprocess(pixels))).float().numpy()

    def _meet(self, name: str, plan: Plan, have: list[int]) -> Pupil:
        """A student says hello, for the first time or again. It starts at the newest step that all ends hold."""
        check_plan(plan, self.data, len(self.data.classes))
        if plan.exchange == "weights" and self.train is not None:
            raise UsageError("exchange weights sends the teacher as it is: serve one that stands still (without --train)")
        if plan.exchange == "inputs" and self.train is not None:
            raise UsageError("a teacher that trains needs the data itself: use --exchange logits, or serve one that stands still")
        with self._changed:
            pupil = self.pupils.get(name)
            if pupil is None:
                if len(self.pupils) >= self.students:
                    raise UsageError(f"this lesson is for {self.students} student(s), and all are here: start the teacher with --students")
                pupil = self.pupils[name] = Pupil(plan, Codec(plan.codec, plan.samples, plan.classes, plan.top_k))
            if pupil.plan != plan:
                raise UsageError(f"student '{name}' came back with another plan: start both ends again")
            mine = self.shelf.steps() if self.train is not None else [step for step in have if plan.codec != "soft" or step in pupil.codecs]
            pupil.start = newest_common(mine, have)
            pupil.codec = Codec(plan.codec, plan.samples, plan.classes, plan.top_k)
            if pupil.start and plan.codec == "soft":
                pupil.codec.restore(pupil.codecs[pupil.start])
            pupil.waiting = queue.Queue(plan.window + 2)
            pupil.connected, pupil.meetings = True, pupil.meetings + 1
            self._generation += 1
            self._changed.notify_all()
        self.note(f"student {name} is here, from step {pupil.start}")
        return pupil

    def _leave(self, name: str) -> None:
        with self._changed:
            pupil = self.pupils.get(name)
            if pupil is not None:
                pupil.connected = False
            self._changed.notify_all()

    def _weights(self) -> bytes:
        from safetensors.torch import save

        return bytes(save({key: value.contiguous() for key, value in self.model.state_dict().items()}))

    def _sent(self, kind: str, **values: Any) -> Iterator[Any]:
        for frame in wire.frames(kind, **values):
            self.wire_bytes += frame.ByteSize()
            yield frame

    def _count(self, size: int) -> None:
        self.wire_bytes += size

    # the lesson

    def lesson(self, timeout: float | None = None) -> None:
        """Wait for all students, teach them to the end, and return when all are done. Raises `EdgecompressError` when one stays away."""
        self._until(lambda: len(self.pupils) == self.students, timeout, "no student has connected")
        if self.train is not None:
            self._train()
        patience = None if timeout is None else max(timeout, PATIENCE)
        self._until(lambda: all(p.done is not None for p in self.pupils.values()), patience, "a student did not end its lesson", True)

    def _until(self, happened: Callable[[], bool], timeout: float | None, text: str, away: bool = False) -> None:
        """Wait. With `away` the time counts only while a student that is not done is not connected."""
        left = time.monotonic() + timeout if timeout is not None else None
        with self._changed:
            while not happened():
                if away and all(p.connected or p.done is not None for p in self.pupils.values()) and timeout is not None:
                    left = time.monotonic() + timeout
                if left is not None and time.monotonic() > left:
                    raise EdgecompressError(f"{text} within {timeout:g} s: look at the student's own messages")
                self._changed.wait(0.2)

    def _train(self) -> None:
        """The teacher's own training, which publishes every step; after a break it goes back to where its students start again."""
        assert self.train is not None
        plan = next(iter(self.pupils.values())).plan
        pristine = {key: value.clone() for key, value in self.model.state_dict().items()}
        while True:
            with self._changed:
                generation = self._generation
                starts = {pupil.start for pupil in self.pupils.values()}
            start = min(starts)
            self.shelf.back_to(start)
            self.model.load_state_dict(pristine)
            place = [start]

            def keep(kept: Kept) -> None:
                self.shelf.put(kept["step"], kept)

            loss = self._publishing(plan, place, generation)
            hooks = Hooks(keep=keep, keep_every=plan.keep_every, begin=self.shelf.get(start))
            try:
                result = fit(self.model, self.data, loss, self.train, seed=plan.seed, device=torch.device("cpu"), hooks=hooks)
            except BrokenError as error:
                self.note(f"{error}; waiting for the student to come back")
                self._until(lambda old=generation: self._generation != old and self._all_here(), PATIENCE, "the student did not come back")  # type: ignore[misc]
                continue
            self.model = result.model
            return

    def _all_here(self) -> bool:
        return all(pupil.connected or pupil.done is not None for pupil in self.pupils.values())

    def _publishing(self, plan: Plan, place: list[int], generation: int) -> Loss:
        def loss(logits: Tensor, batch: Batch) -> Tensor:
            place[0] += 1
            said = logits.detach().cpu().numpy().astype(np.float32)
            for pupil in list(self.pupils.values()):
                self._hand(pupil, place[0], said, generation)
            self.steps += 1
            return label_loss(logits, batch)

        return loss

    def _hand(self, pupil: Pupil, step: int, logits: Any, generation: int) -> None:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if self._generation != generation or not pupil.connected:
                raise BrokenError(f"a student broke off before step {step}")
            try:
                pupil.waiting.put((step, logits), timeout=0.2)
                return
            except queue.Full:
                continue
        raise EdgecompressError(f"a student took nothing for {PATIENCE:g} s at step {step}: the lesson ends")


def serve(teacher: Teacher, address: str, tls: Tls | None) -> tuple[grpc.Server, int]:
    """Start to serve at `address` (host:port, port 0 for any). Returns the server and its port; stop it with `server.stop(grace)`."""
    server = grpc.server(ThreadPoolExecutor(teacher.students + 4), options=CHANNEL)
    handler = grpc.stream_stream_rpc_method_handler(teacher.attend, request_deserializer=wire.decode, response_serializer=wire.encode)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(wire.SERVICE, {wire.METHOD: handler}),))
    try:
        port = server.add_insecure_port(address) if tls is None else server.add_secure_port(address, tls.server())
    except RuntimeError as error:
        raise UsageError(f"address '{address}' cannot be served: it is in use, or not of this machine") from error
    if not port:
        raise UsageError(f"address '{address}' cannot be served: it is in use, or not of this machine")
    server.start()
    return server, port
