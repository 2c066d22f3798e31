"""The teacher's end: serves what it says of each step's samples to the students that connect; may
train at the same time.

A teacher that stands still answers each student by itself. One that trains goes through the steps
once for all its students, and waits for the slowest: it publishes its logits at each step before it
learns from it, or its weights before each epoch. In mutual learning it also hears the students'
logits before each step.

Whatever a student sends reaches no further than its own stream. How long a student may be silent is
not measured: a connection whose other end is gone is found by gRPC's keepalive, and then the
student has left.
"""

from __future__ import annotations

import contextlib
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import torch
from torch import Tensor, nn

from edgecompress.data import DataSet, Preprocess
from edgecompress.errors import EdgecompressError, UsageError
from edgecompress.methods.features import Taps, map_ends, reduced
from edgecompress.online import wire
from edgecompress.online.mutual import Mutual
from edgecompress.online.plan import ConnectionLostError, Plan, check_plan
from edgecompress.online.registry import BEAT, StudentRegistry
from edgecompress.online.secure import Tls
from edgecompress.online.session import StudentSession
from edgecompress.online.weights import EpochWeights, packed_weights
from edgecompress.train.batches import Batch, compact
from edgecompress.train.fit import FitResult, Hooks, Loss, fit, label_loss
from edgecompress.train.settings import FitSettings

PATIENCE = 120.0
"""Seconds that a training teacher waits for a student that has left before the lesson has
failed.
"""
HELLO_SECONDS = 30.0
"""How long a stream may be open without a hello."""
GROUP_BYTES, GROUP_SECONDS = 16_000, 0.05
"""A message of several answers goes when it is so large, or so old."""
EPOCHS_AHEAD = 1
"""Epochs that a teacher whose weights travel may be ahead of a student."""


class Teacher:
    """Serves one lesson to `students` students. `train` are the settings of its own training, None
    for a teacher that stands still.

    `data` may be None for a teacher that stands still and is told all pixels; it then needs
    `preprocess`. `cut` are the hooks `cut`, `mend` and `eligible` of a training in which it is
    pruned. States are kept below `states`; `own` says what else they depend on, and with `resume`
    the lesson there goes on. `steps` are those of its training, or the answers it computed.
    """

    def __init__(
        self,
        model: nn.Module,
        data: DataSet | None,
        *,
        preprocess: Preprocess | None = None,
        classes: int | None = None,
        train: FitSettings | None = None,
        students: int = 1,
        states: Path | None = None,
        own: Mapping[str, Any] | None = None,
        resume: bool = False,
        cut: Hooks | None = None,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        if preprocess is None:
            if data is None:
                raise ValueError("a teacher without data needs its preprocess")
            preprocess = data.preprocess
        self.model, self.data, self.preprocess = model.eval(), data, preprocess
        self.classes = len(data.classes) if data is not None else int(classes or 0)
        self.train, self.students, self.cut, self.note = train, students, cut or Hooks(), note
        self.registry = StudentRegistry(
            students, states, own or {}, training=train is not None, resume=resume
        )
        self.result: FitResult | None = None
        self._lock, self._counting = threading.Lock(), threading.Lock()
        self._weights: dict[int, bytes] = {}
        self._ends: dict[str, tuple[int, int]] | None = None
        self.steps, self.payload_bytes, self.wire_bytes = 0, 0, 0

    @property
    def sessions(self) -> dict[str, StudentSession]:
        """The students by name."""
        return self.registry.sessions

    # the stream of one student

    def attend(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:
        """One student's stream. Whatever is wrong with it is told to it in words."""
        messages = wire.whole(requests, self._count, wire.MOST_ASKED)
        session, name, meeting, greeted = None, "", 0, False
        late = threading.Timer(HELLO_SECONDS, context.cancel)
        late.daemon = True
        late.start()
        try:
            frame, _, said = next(messages, (None, b"", {}))
            late.cancel()
            if frame is None:
                return
            if frame.kind != wire.HELLO:
                raise UsageError(f"the first message is '{frame.kind}': a student says hello first")
            name, session = self._meet(said)
            plan, meeting = session.plan, session.meetings
            if not context.add_callback(lambda: self.registry.leave(session, meeting)):
                return
            for _ in self.registry.begin(session, meeting):
                yield from self._sent(wire.BUSY)
            self.note(f"a student is here, from step {session.answered}")
            told = {
                "start": session.answered,
                "training": self.train is not None,
                "maps": self._maps_of(session),
            }
            greeted = True
            self.registry.greet(session)
            yield from self._sent(wire.HELLO, run=plan.run, said=told)
            yield from (
                self._exchanged(session, messages)
                if plan.mutual
                else self._answers(session, messages)
            )
        except grpc.RpcError:
            return
        except Exception as error:  # a message may be anything: it ends this stream, not the lesson
            if isinstance(error, UsageError) and not greeted and session is not None:
                self.registry.dismiss(name, session)
            text = (
                str(error)
                if isinstance(error, EdgecompressError)
                else f"not a student's message: {type(error).__name__}: {error}"
            )
            yield from self._sent(
                wire.ERROR, said={"error": text, "broken": isinstance(error, ConnectionLostError)}
            )
        finally:
            late.cancel()
            self.registry.leave(session, meeting)

    def _answers(self, session: StudentSession, messages: Iterator[Any]) -> Iterator[Any]:
        """The stream of a student that asks."""
        plan, meeting = session.plan, session.meetings
        for frame, payload, said in messages:
            if session.meetings != meeting:
                return  # it has connected again elsewhere
            if frame.kind == wire.DONE:
                yield from self._goodbye(session, said, meeting)
                return
            if frame.kind == wire.WEIGHTS and plan.exchange == "weights" and frame.run == plan.run:
                yield from self._weights_given(session, frame.epoch, meeting)
            elif frame.kind == wire.WANT and plan.exchange != "weights":
                yield from self._given(session, plan.check(frame), payload, meeting)
            else:
                raise UsageError(
                    f"message '{frame.kind}' is not one of exchange {plan.exchange}: start "
                    "both ends again"
                )

    def _exchanged(self, session: StudentSession, messages: Iterator[Any]) -> Iterator[Any]:
        """The stream of mutual learning: each step is said as soon as it is known, and what the
        student says is heard beside it.
        """
        meeting = session.meetings
        threading.Thread(
            target=self._listen, args=(session, messages, meeting), daemon=True
        ).start()
        yield from self._given(
            session, range(session.answered + 1, session.plan.steps + 1), b"", meeting
        )
        while not self.registry.all_done() and self.registry.there(
            session, meeting
        ):  # nobody leaves whom another may still need
            with self.registry.changed:
                self.registry.changed.wait(0.2)
        if session.wrong is not None:
            raise session.wrong
        if session.done is not None:
            yield from self._goodbye(session, session.done, meeting)

    def _listen(self, session: StudentSession, messages: Iterator[Any], meeting: int) -> None:
        """Collect what a student says, in a thread of its own, until its stream ends."""
        try:
            for frame, payload, said in messages:
                if session.meetings != meeting:
                    return
                with self.registry.changed:
                    if frame.kind == wire.DONE:
                        session.done = said
                    elif frame.kind == wire.SAY:
                        self._hear_of(session, session.plan.check(frame)[-1], payload)
                    else:
                        raise UsageError(
                            f"message '{frame.kind}' is not one of mutual learning: start "
                            "both ends again"
                        )
                    self.registry.changed.notify_all()
        except grpc.RpcError:
            pass  # it hung up: below it leaves
        except Exception as error:  # a message may be anything
            known = isinstance(error, EdgecompressError)
            session.wrong = error if known else UsageError(f"not a student's message: {error!r}")  # type: ignore[assignment]
        finally:
            self.registry.leave(session, meeting)

    def _hear_of(self, session: StudentSession, step: int, payload: bytes) -> None:
        """Take what a student says of a step."""
        logits = torch.from_numpy(session.ear.decode(payload, session.plan.ids(step).numpy()))
        if not bool(torch.isfinite(logits).all()):
            raise UsageError(
                f"the student's logits of step {step} are not finite: lower its --learning-rate"
            )
        self._counted(len(payload))
        session.heard[step] = logits
        if session.plan.keeps(step):
            session.listened[step] = session.ear.state()
            session.keep_codecs(step)

    def _goodbye(
        self, session: StudentSession, said: dict[str, Any], meeting: int
    ) -> Iterator[Any]:
        """A student has ended; it hears so once the teacher's own training is whole, which may
        still need it.
        """
        with self.registry.changed:
            session.done = said
            self.registry.changed.notify_all()
        begun = time.monotonic()
        while self.train is not None and self.result is None:
            with self.registry.changed:
                self.registry.check_there(session, meeting)
                self.registry.changed.wait(0.2)
            if time.monotonic() - begun > BEAT:
                yield from self._sent(wire.BUSY)
                begun = time.monotonic()
        self.registry.end(session)
        yield from self._sent(wire.DONE, run=session.plan.run, said={"steps": self.steps})

    def _given(
        self, session: StudentSession, steps: range, payload: bytes, meeting: int
    ) -> Iterator[Any]:
        """The answers to some steps. A teacher that stands still puts several into one message, as
        far as nobody waits for it.
        """
        plan = session.plan
        ready, begun = list[bytes](), time.monotonic()
        for step in steps:
            while (answer := self._answer(session, step, payload, meeting)) is None:
                yield from self._sent(wire.BUSY)
            ready.append(answer)
            self._counted(len(answer))
            late = time.monotonic() - begun > GROUP_SECONDS
            if (
                self.train is None
                and step != steps[-1]
                and sum(map(len, ready)) < GROUP_BYTES
                and not late
            ):
                continue
            if len(ready) == 1:
                yield from self._sent(wire.GIVE, **plan.stamp(step), payload=ready[0])
            else:
                yield from self._sent(
                    wire.GIVE, **plan.stamp(step, step - len(ready) + 1), payload=wire.joined(ready)
                )
            with self.registry.changed:
                self.registry.check_there(session, meeting)
                session.answered = step
            ready, begun = [], time.monotonic()

    def _answer(
        self, session: StudentSession, step: int, payload: bytes, meeting: int
    ) -> bytes | None:
        """What travels for one step; None when the training has not come there yet."""
        plan = session.plan
        found = (
            self._computed(session, step, payload)
            if self.train is None
            else self._published(session, step, meeting)
        )
        if found is None:
            return None
        logits, maps = found
        with self.registry.changed:
            self.registry.check_there(session, meeting)  # its codec may be another one by now
            data = session.codec.encode(logits, plan.ids(step).numpy())
            if plan.keeps(step):
                session.spoken[step] = session.codec.state()
                session.keep_codecs(step)
        return wire.with_maps(data, maps, plan.codec) if plan.exchange == "features" else data

    def _published(
        self, session: StudentSession, step: int, meeting: int
    ) -> tuple[Any, list[Any]] | None:
        """Logits (B, K) float32 that the training said of a step; None after `BEAT` seconds
        without.
        """
        deadline = time.monotonic() + BEAT
        while time.monotonic() < deadline:
            self.registry.check_there(session, meeting)
            with contextlib.suppress(queue.Empty):
                at, logits = session.waiting.get(timeout=0.2)
                if at == step:
                    return logits, []
        return None

    def _computed(
        self, session: StudentSession, step: int, payload: bytes
    ) -> tuple[Any, list[Any]]:
        """Logits (B, K) float32 of a step, and the maps that go with them, asked of the network
        now.
        """
        plan = session.plan
        if plan.exchange == "inputs":
            size = len(plan.ids(step)) * math.prod(plan.native)
            if len(payload) != size:
                raise UsageError(
                    f"step {step} brings {len(payload)} bytes of pixels, {size} expected: "
                    "start both ends again"
                )
            pixels = torch.frombuffer(bytearray(payload), dtype=torch.uint8).reshape(
                -1, *plan.native
            )
        elif self.data is None:
            raise UsageError(
                "this teacher has no data: use --exchange inputs, or serve it with --data"
            )
        else:
            _, pixels = plan.pixels(self.data, step)
        with self._lock, torch.no_grad(), contextlib.ExitStack() as stack:
            if session.taps is not None:
                session.taps.attach(self.model)
                stack.callback(session.taps.detach)
            self.steps += 1
            logits = self.model(compact(self.preprocess(pixels))).float().numpy()
            heard = session.taps.heard() if session.taps is not None else []
            return logits, [
                reduced(plan.features, maps, size).numpy()
                for maps, size in zip(heard, session.sizes, strict=True)
            ]

    def _maps_of(self, session: StudentSession) -> list[list[int]]:
        """[channels, height, width] of the maps that travel with each step, in the order of the
        student's layers.
        """
        plan = session.plan
        if plan.exchange != "features":
            return []
        example = torch.zeros(
            1, *self.preprocess.shape((plan.native[0], plan.native[1], plan.native[2]))
        )
        with self._lock, torch.no_grad():  # its layers are listened to
            self._ends = self._ends or map_ends(self.model, example)
            count = min(len(self._ends), len(plan.maps))
            names, session.sizes = (
                list(self._ends)[-count:],
                [(size[0], size[1]) for size in plan.maps[-count:]],
            )
            session.taps = Taps(names, "teacher")
            session.taps.attach(self.model)
            try:
                self.model(example)
                found = [
                    reduced(plan.features, maps, size)
                    for maps, size in zip(session.taps.heard(), session.sizes, strict=True)
                ]
            finally:
                session.taps.detach()
        return [list(maps.shape[1:]) for maps in found]

    def _weights_given(self, session: StudentSession, epoch: int, meeting: int) -> Iterator[Any]:
        """The state dict, as safetensors: as it is, or as it was before `epoch` of the teacher's
        own training.
        """
        with self.registry.changed:
            session.epoch, session.answered = epoch, (epoch - 1) * session.plan.steps_an_epoch
            self.registry.changed.notify_all()
        begun, found = time.monotonic(), packed_weights(self.model) if self.train is None else None
        while found is None:
            with self.registry.changed:
                self.registry.check_there(session, meeting)
                found = self._weights.get(epoch)
                if found is None:
                    self.registry.changed.wait(0.2)
            if time.monotonic() - begun > BEAT:
                yield from self._sent(wire.BUSY)
                begun = time.monotonic()
        self._counted(len(found))
        yield from self._sent(wire.WEIGHTS, run=session.plan.run, epoch=epoch, payload=found)

    def _meet(self, said: dict[str, Any]) -> tuple[str, StudentSession]:
        """A student says hello: its name and place."""
        name, plan, have = (
            str(said["name"])[:200],
            Plan.parsed(said["plan"]),
            [int(step) for step in said["have"]],
        )
        check_plan(plan, self.data, self.classes, self.train)
        if self.data is None or plan.exchange == "inputs":
            self._check_reads((plan.native[0], plan.native[1], plan.native[2]))
        if self.cut.cut is not None and plan.exchange == "weights":
            raise UsageError(
                "a teacher that is pruned cannot send its weights, whose shapes change: use "
                "--exchange logits"
            )
        return name, self.registry.meet(name, str(said["instance"])[:200], plan, have)

    def _check_reads(self, native: tuple[int, int, int]) -> None:
        """Raises `UsageError` for images that the network cannot read."""
        try:
            with self._lock, torch.no_grad():
                self.model(compact(self.preprocess(torch.zeros(1, *native, dtype=torch.uint8))))
        except Exception as error:  # torch raises what its layers raise
            raise UsageError(
                f"the student's images of {native} are none that this teacher reads: "
                f"{' '.join(str(error).split())}"
            ) from error

    def _sent(self, kind: str, **values: Any) -> Iterator[Any]:
        for frame in wire.frames(kind, **values):
            self._count(frame.ByteSize())
            yield frame

    def _count(self, size: int) -> None:
        with self._counting:
            self.wire_bytes += size

    def _counted(self, size: int) -> None:
        with self._counting:
            self.payload_bytes += size

    # the lesson

    def lesson(self, timeout: float | None = None) -> None:
        """Wait for all students, teach them to the end, and return when all are done. Raises
        `EdgecompressError` when one stays away.

        Whatever ends it before, its students hear of.
        """
        try:
            self.registry.until(self.registry.complete, timeout, "not all students have connected")
            patience = None if timeout is None else max(timeout, PATIENCE)
            if self.train is not None and self.data is not None:
                self._train(self.train, self.data, patience)
            self.registry.until(
                self.registry.all_done, patience, "a student did not end its lesson", True
            )
        except Exception as error:
            self.registry.fail(" ".join(str(error).split())[:200] or type(error).__name__)
            raise

    def _train(self, train: FitSettings, data: DataSet, patience: float | None) -> None:
        """The teacher's own training, which publishes what it says; after a break it goes back to
        where its students start again.
        """
        plan, first = next(iter(self.sessions.values())).plan, self.model
        pristine = {key: value.clone() for key, value in first.state_dict().items()}
        while True:
            self.registry.until(self.registry.all_here, PATIENCE, "the student did not come back")
            with self.registry.changed:
                generation = self.registry.generation
                needed = min(
                    (session.answered for session in self.registry.active()), default=plan.steps
                )
                start = max(step for step in self.registry.store.steps() if step <= needed)
                self._weights.clear()
            self.result = None
            self.registry.store.back_to(start)
            first.load_state_dict(pristine)
            try:
                self.result = self._trained(first, train, data, plan, start, generation)
            except ConnectionLostError as error:
                self.note(f"{error}; waiting for the student to come back")
                self.registry.until_back(generation, PATIENCE)
                continue
            self.model = self.result.model
            self.registry.until(
                self._done_or_back(generation), patience, "a student did not end its lesson", True
            )
            if self.registry.all_done():
                return

    def _done_or_back(self, generation: int) -> Callable[[], bool]:
        return lambda: self.registry.all_done() or self.registry.generation != generation

    def _trained(
        self,
        model: nn.Module,
        train: FitSettings,
        data: DataSet,
        plan: Plan,
        start: int,
        generation: int,
    ) -> FitResult:
        """One try of the training, from `start`.

        Raises `ConnectionLostError` when a student breaks off.
        """
        self.steps = start
        companion: Mutual | EpochWeights | None = None
        loss: Loss = label_loss
        if plan.mutual:
            loss = companion = Mutual(
                plan,
                data,
                lambda step, logits: self._publish(step, logits, generation),
                lambda step: [
                    self._hear(session, step, generation) for session in self.registry.active()
                ],
                start,
            )
        elif plan.exchange == "weights":
            companion = EpochWeights(lambda epoch, weights: self._offer(epoch, weights, generation))
        place, store = [start], self.registry.store

        def watched(logits: Tensor, batch: Batch) -> Tensor:
            place[0] += 1
            self.registry.check_whole(place[0], generation)
            if companion is None:
                self._publish(place[0], logits.detach(), generation)
            self.steps = place[0]
            return loss(logits, batch)

        hooks = replace(
            self.cut,
            keep=lambda kept: store.put(kept["step"], kept),
            keep_every=plan.keep_every,
            keep_last=plan.steps,
            begin=store.get(start),
            companion=companion,
        )
        return fit(
            model, data, watched, train, seed=plan.seed, device=torch.device("cpu"), hooks=hooks
        )

    def _publish(self, step: int, logits: Tensor, generation: int) -> None:
        """Hand the logits of a step to every student's stream; waits where one is behind."""
        said = logits.cpu().numpy().astype(np.float32)
        for session in self.registry.active():
            while session.done is None:
                self.registry.check_whole(step, generation)
                with contextlib.suppress(queue.Full):
                    session.waiting.put((step, said), timeout=0.2)
                    break

    def _hear(self, session: StudentSession, step: int, generation: int) -> Tensor:
        """What a student says of a step; waits for it."""
        with self.registry.changed:
            while step not in session.heard:
                self.registry.check_whole(step, generation)
                self.registry.changed.wait(0.2)
            return session.heard.pop(step)

    def _offer(self, epoch: int, weights: bytes, generation: int) -> None:
        """Lay out the weights before `epoch`; waits until no student is more than `EPOCHS_AHEAD`
        behind.
        """
        with self.registry.changed:
            self._weights[epoch] = weights
            self._weights.pop(epoch - EPOCHS_AHEAD - 2, None)
            self.registry.changed.notify_all()
            while any(session.epoch < epoch - EPOCHS_AHEAD for session in self.registry.active()):
                self.registry.check_whole(
                    (epoch - 1) * next(iter(self.sessions.values())).plan.steps_an_epoch + 1,
                    generation,
                )
                self.registry.changed.wait(0.2)


def _not_served(address: str, tls: Tls | None) -> str:
    why = "it is in use, or not of this machine"
    return (
        f"address '{address}' cannot be served: "
        f"{why}{'' if tls is None else ', or --tls-cert and --tls-key are no pair of PEM files'}"
    )


def serve(teacher: Teacher, address: str, tls: Tls | None) -> tuple[grpc.Server, int]:
    """Start to serve at `address` (host:port, port 0 for any). Returns the server and its port;
    stop it with `server.stop(grace)`.
    """
    server = grpc.server(
        ThreadPoolExecutor(teacher.students + 4), options=(*wire.CHANNEL, ("grpc.so_reuseport", 0))
    )
    handler = grpc.stream_stream_rpc_method_handler(
        teacher.attend, request_deserializer=wire.decode, response_serializer=wire.encode
    )
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(wire.SERVICE, {wire.METHOD: handler}),)
    )
    try:
        port = (
            server.add_insecure_port(address)
            if tls is None
            else server.add_secure_port(address, tls.server())
        )
    except RuntimeError as error:
        raise UsageError(_not_served(address, tls)) from error
    if not port:
        raise UsageError(_not_served(address, tls))
    server.start()
    return server, port
