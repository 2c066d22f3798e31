"""A teacher that trains while it teaches.

It goes through the steps once for all its students, and waits for the slowest. What the students
receive is up to the exchange: logits at each step before the network learns from it, or weights
before each epoch; in mutual learning the teacher also receives the students' logits.
"""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from edgecompress.data import DataSet, Preprocess
from edgecompress.online.exchanges import exchange_of
from edgecompress.online.exchanges.base import Outputs
from edgecompress.online.lesson import Lesson
from edgecompress.online.plan import Plan
from edgecompress.online.registry import POLL_SECONDS, StudentRegistry
from edgecompress.online.session import StudentSession
from edgecompress.online.stream import Stream
from edgecompress.online.wire import HEARTBEAT_SECONDS, ConnectionLostError
from edgecompress.train.batches import Batch
from edgecompress.train.fit import FitResult, Hooks, fit
from edgecompress.train.settings import FitSettings

PATIENCE = 120.0
"""Seconds that a training waits for a student that has left before the lesson has failed."""
EPOCHS_AHEAD = 1
"""Epochs by which a teacher whose weights travel may be ahead of a student."""
UNFINISHED = "a student did not end its lesson"
NOT_BACK = "the student did not come back"


class TrainingLesson(Lesson):
    """A network that trains as `settings` say; `hooks` are those of a training in which it is
    pruned.
    """

    def __init__(
        self,
        model: nn.Module,
        data: DataSet,
        preprocess: Preprocess,
        settings: FitSettings,
        hooks: Hooks,
        registry: StudentRegistry,
        note: Callable[[str], None],
    ) -> None:
        super().__init__(model, data, preprocess, len(data.classes), registry, note)
        self.settings = settings
        self.is_pruned = hooks.cut is not None
        self.result: FitResult | None = None
        self.offered_weights = dict[int, bytes]()
        """Packed weights by epoch."""
        self._training_data = data
        self._training_settings = settings
        self._hooks = hooks

    @property
    def finished(self) -> bool:
        """Has the training ended?"""
        return self.result is not None

    def outputs(self, stream: Stream, step: int, compute: Callable[[], Outputs]) -> Outputs | None:
        """The logits that the training has published for a step."""
        deadline = time.monotonic() + HEARTBEAT_SECONDS
        while time.monotonic() < deadline:
            stream.check()
            with contextlib.suppress(queue.Empty):
                published, logits = stream.session.outbox.get(timeout=POLL_SECONDS)
                if published == step:
                    return Outputs(logits)
        return None

    def weights(self, epoch: int) -> bytes | None:
        """Those that the training has offered."""
        return self.offered_weights.get(epoch)

    def run(self, patience: float | None) -> None:
        """Train to the end; after a break, return to where the students continue."""
        initial = self.model
        pristine = {key: value.clone() for key, value in initial.state_dict().items()}
        while True:
            self.registry.wait_until(self.registry.all_connected, PATIENCE, NOT_BACK)
            attempt = self._next_attempt()
            initial.load_state_dict(pristine)
            try:
                self.result = self._train(initial, attempt)
            except ConnectionLostError as error:
                self.note(f"{error}; waiting for the student to come back")
                self.registry.wait_until(attempt.is_outdated, PATIENCE, NOT_BACK)
                continue

            self.model = self.result.model
            self.registry.wait_until(
                lambda attempt=attempt: self.registry.all_done() or attempt.is_outdated(),  # type: ignore[misc]
                patience,
                UNFINISHED,
                while_away=True,
            )
            if self.registry.all_done():
                return

    def _next_attempt(self) -> Attempt:
        """An attempt from the newest saved step that no student is behind."""
        registry = self.registry
        plan = next(iter(registry.sessions.values())).plan
        with registry.changed:
            generation = registry.generation
            needed = min((one.answered for one in registry.active()), default=plan.steps)
            start = max(step for step in registry.store.steps() if step <= needed)
            self.offered_weights.clear()
        self.result = None
        registry.store.rewind(start)
        return Attempt(self, self._training_data, plan, start, generation)

    def _train(self, model: nn.Module, attempt: Attempt) -> FitResult:
        """Train from the start of `attempt`.

        Raises `ConnectionLostError` when a student loses its connection.
        """
        plan = attempt.plan
        store = self.registry.store
        self.steps = attempt.start
        loss, companion = exchange_of(plan).training(attempt)

        def watched(logits: Tensor, batch: Batch) -> Tensor:
            attempt.advance()
            self.steps = attempt.step
            return loss(logits, batch)

        hooks = replace(
            self._hooks,
            keep=lambda kept: store.put(kept["step"], kept),
            keep_every=plan.keep_every,
            keep_last=plan.steps,
            begin=store.get(attempt.start),
            companion=companion,
        )
        return fit(
            model,
            self._training_data,
            watched,
            self._training_settings,
            seed=plan.seed,
            device=torch.device("cpu"),
            hooks=hooks,
        )


class Attempt:
    """One attempt of the training, from after step `start` to the end or to the next break.
    `generation` is that of the registry when it began.

    All methods that wait raise `ConnectionLostError` when a student leaves or comes back.
    """

    def __init__(
        self, lesson: TrainingLesson, data: DataSet, plan: Plan, start: int, generation: int
    ) -> None:
        self.data = data
        self.plan = plan
        self.start = start
        self.step = start
        self._lesson = lesson
        self._registry = lesson.registry
        self._generation = generation
        self.students = lesson.registry.active()
        """Those that have not ended their lesson as the attempt begins."""

    def is_outdated(self) -> bool:
        """Has a student come back since the attempt began?"""
        return self._registry.generation != self._generation

    def advance(self) -> None:
        """The training is at the next step."""
        self.step += 1
        self._check(self.step)

    def publish(self, step: int, logits: Tensor) -> None:
        """Put the logits (B, K) of a step into the outbox of every student; waits while one is
        full.
        """
        values = logits.cpu().numpy().astype(np.float32)
        for session in self._registry.active():
            while session.done is None:
                self._check(step)
                with contextlib.suppress(queue.Full):
                    session.outbox.put((step, values), timeout=POLL_SECONDS)
                    break

    def logits_of(self, session: StudentSession, step: int) -> Tensor:
        """The logits (B, K) of a step from the student of `session`; waits for them."""
        with self._registry.changed:
            while step not in session.peer_logits:
                self._check(step)
                self._registry.changed.wait(POLL_SECONDS)
            return session.peer_logits.pop(step)

    def offer(self, epoch: int, weights: bytes) -> None:
        """Offer the packed weights before `epoch`; waits until no student is more than
        `EPOCHS_AHEAD` behind.
        """
        first_step = (epoch - 1) * self.plan.steps_per_epoch + 1
        with self._registry.changed:
            self._lesson.offered_weights[epoch] = weights
            self._lesson.offered_weights.pop(epoch - EPOCHS_AHEAD - 2, None)
            self._registry.changed.notify_all()
            while any(one.epoch < epoch - EPOCHS_AHEAD for one in self._registry.active()):
                self._check(first_step)
                self._registry.changed.wait(POLL_SECONDS)

    def _check(self, step: int) -> None:
        self._registry.check_generation(step, self._generation)
