"""The student's end: an ordinary training whose teacher answers over the network.

Requests are sent `window` steps ahead of the training, so that the round trip is hidden. A broken
connection raises `ConnectionLostError` inside the training; `attend` then connects again, both ends
return to the newest step that both have saved, and the training continues there.
"""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from edgecompress.data import DataSet
from edgecompress.errors import EdgecompressError, UsageError
from edgecompress.online.connection import Connection
from edgecompress.online.exchanges import exchange_of
from edgecompress.online.exchanges.base import Objective, StudentEndpoint, StudentSetup
from edgecompress.online.plan import Plan
from edgecompress.online.progress import Progress, Tally
from edgecompress.online.secure import Tls
from edgecompress.online.wire import ConnectionLostError
from edgecompress.train.fit import FitResult, Hooks, Kept, fit
from edgecompress.train.history import EpochRow
from edgecompress.train.settings import FitSettings

GREETING_SECONDS = 5.0
"""How long a connection may take to come up."""
FIRST_WAIT = 0.2
LONGEST_WAIT = 5.0
"""Seconds between two attempts to connect; each wait is twice the last one."""


class Student:
    """Trains `model` in the lesson that `plan` describes, and saves its states in the folder
    `states`. `cut` are the hooks of a training in which it is pruned, `mentor` is the teacher's
    network where its weights travel.
    """

    def __init__(
        self,
        model: nn.Module,
        data: DataSet,
        settings: FitSettings,
        plan: Plan,
        *,
        name: str = "student",
        states: Path | None = None,
        loss: str = "kl",
        temperature: float | None = None,
        alpha: float | None = None,
        feature_weight: float = 1.0,
        mentor: nn.Module | None = None,
        cut: Hooks | None = None,
        on_epoch: Callable[[EpochRow], None] | None = None,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.model = model
        self.settings = settings
        self.plan = plan
        self.name = name
        self.cut = cut or Hooks()
        self.on_epoch = on_epoch
        self.note = note
        self.instance = secrets.token_hex(8)
        self.store = plan.store(states)
        self.progress = Progress(plan)
        objective = Objective(loss, temperature, alpha, feature_weight)
        self._setup = StudentSetup(plan, data, model, objective, self.progress, mentor)
        self._endpoint: StudentEndpoint | None = None

    @property
    def tally(self) -> Tally:
        """What the lesson has taken so far."""
        return self.progress.tally

    def attend(
        self,
        target: str,
        tls: Tls | None,
        patience: float = 60.0,
        finished: Callable[[FitResult], None] = lambda _: None,
    ) -> FitResult:
        """Learn to the end, connecting to the teacher at `target` (host:port) again after every
        break.

        `finished` is called with the result before the teacher learns that the student is done.
        Raises `EdgecompressError` when the teacher stays away, or no step is gained, for `patience`
        seconds, `UsageError` when it refuses.
        """
        pristine = {key: value.clone() for key, value in self.model.state_dict().items()}
        retry = _Retry(patience)
        result: FitResult | None = None
        while True:
            connection = Connection(target, tls, self.plan, self.name, self.instance)
            try:
                endpoint = self._connect(connection, min(GREETING_SECONDS, patience))
                retry.connected()
                if result is None or self._needed_again(endpoint):
                    result = self._learn(endpoint, pristine)
                    retry.gained()
                    self._count(connection)
                    finished(result)
                if connection.end({"epochs": self.plan.epochs, "steps": self.tally.steps}):
                    return result
                raise ConnectionLostError("the teacher did not confirm the end of the lesson")
            except ConnectionLostError as error:
                if result is None:
                    self._count_break(connection, retry)
                if not retry.expired():
                    self.note(f"{error}; connecting again")
                    retry.wait()
                elif result is None:
                    raise _stayed_away(error, target, patience) from error
                else:
                    return self._complete(result, error)
            except UsageError as error:
                if result is None:
                    raise
                return self._complete(result, error)
            finally:
                connection.close()

    def _connect(self, connection: Connection, timeout: float) -> StudentEndpoint:
        """The student's end of the exchange, ready to continue after the common step."""
        endpoint = exchange_of(self.plan).student(self._setup, connection)
        greeting = connection.meet(self.store.steps(), timeout)
        endpoint.begin(greeting.start, greeting.maps, self.store.get(greeting.start))
        connection.listen(endpoint.receive)
        self.progress.carried = connection.carried
        self._endpoint = endpoint
        return endpoint

    def _needed_again(self, endpoint: StudentEndpoint) -> bool:
        """In mutual learning the teacher may need steps of a student that is done already."""
        return self.plan.mutual and endpoint.start < self.plan.steps

    def _complete(self, result: FitResult, error: EdgecompressError) -> FitResult:
        """The result of a student that is done, whether or not the teacher confirmed it."""
        self.note(f"{error}; what was learned is complete")
        return result

    def _count(self, connection: Connection) -> None:
        """Add what a connection has carried to the tally, once."""
        self.tally.wire_bytes += connection.take_carried()

    def _count_break(self, connection: Connection, retry: _Retry) -> None:
        self._count(connection)
        self.tally.breaks += connection.met
        retry.reached(self.progress.step)

    def _learn(self, endpoint: StudentEndpoint, pristine: dict[str, Tensor]) -> FitResult:
        """Train to the end, from the step at which `endpoint` begins."""
        start = endpoint.start
        self.store.rewind(start)
        self.model.load_state_dict(pristine)
        kept = self.store.get(start)
        self.progress.rewind(start, kept)

        def save(state: Kept) -> None:
            step = state["step"]
            codecs = endpoint.codec_states(step)
            self.store.put(step, {**state, **codecs, "tally": self.progress.saved()})

        loss, companion = endpoint.training()
        hooks = replace(
            self.cut,
            on_epoch=self._end_epoch,
            keep=save,
            keep_every=self.plan.keep_every,
            keep_last=self.plan.steps,
            begin=kept,
            companion=companion,
        )
        return fit(
            self.model,
            self._setup.data,
            loss,
            self.settings,
            seed=self.plan.seed,
            device=torch.device("cpu"),
            hooks=hooks,
        )

    def _end_epoch(self, row: EpochRow) -> None:
        self.progress.end_epoch(row)
        if self.on_epoch is not None:
            self.on_epoch(row)


def _stayed_away(error: ConnectionLostError, target: str, patience: float) -> EdgecompressError:
    return EdgecompressError(
        f"{error}; the teacher stayed away, or no step was gained, for "
        f"{patience:g} s: is {target} right, and is it there?"
    )


class _Retry:
    """When to connect again, and when to give up: `patience` seconds after the last progress."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._furthest = -1
        self._since = time.monotonic()
        self._pause = FIRST_WAIT

    def connected(self) -> None:
        """The teacher has answered: the next waits are short again."""
        self._pause = FIRST_WAIT

    def gained(self) -> None:
        """The training has come to its end."""
        self._since = time.monotonic()

    def reached(self, step: int) -> None:
        """The training has come to `step`: the teacher was there until now, if it is a new one."""
        if step > self._furthest:
            self._furthest = step
            self.gained()

    def expired(self) -> bool:
        """Is the patience at its end?"""
        return time.monotonic() - self._since > self._patience

    def wait(self) -> None:
        """Wait, for a random time around the pause, which then doubles."""
        time.sleep(self._pause * (0.5 + random.random()))
        self._pause = min(2 * self._pause, LONGEST_WAIT)
