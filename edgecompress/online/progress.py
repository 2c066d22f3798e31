"""What a student's training has taken so far: steps, bytes, times."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import TypedDict, TypeVar

import torch

from edgecompress.errors import EdgecompressError
from edgecompress.online.plan import Plan
from edgecompress.train.batches import Batch
from edgecompress.train.fit import Kept
from edgecompress.train.history import EpochRow

T = TypeVar("T")


class TimelineRow(TypedDict):
    """Where a lesson stood after an epoch."""

    epoch: int
    step: int
    time_s: float
    validation_accuracy: float
    payload_bytes: int
    wire_bytes: int


@dataclass
class Tally:
    """What the steps in the final result took; `timeline` has a row per epoch.

    `payload_bytes` counts each step once. `wire_bytes` are all frames that this end has sent and
    received, also those that were sent again after a break; after a kill they continue from the
    saved state. `breaks` are connections that were lost, not attempts to connect again.
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
    timeline: list[TimelineRow] = field(default_factory=list)


class Progress:
    """The current `step` of a training that follows `plan`, and its tally. `carried` gives the
    bytes of the current connection that are not in the tally yet.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.step = 0
        self.tally = Tally()
        self.carried: Callable[[], int] = lambda: 0
        self._began = time.monotonic()
        self._last = self._began
        self._waited = 0.0

    def rewind(self, step: int, kept: Kept | None) -> None:
        """Return to the tally that was saved after `step`; None at the beginning. Bytes and breaks
        since then still count, and the clock continues.
        """
        self.step = step
        self._last = time.monotonic()
        self._waited = 0.0

        saved = Tally(**copy.deepcopy(kept["tally"])) if kept is not None else Tally()
        new_process = not self.tally.step_ms and saved.elapsed_s > 0
        if new_process:  # whatever ended the old one was a break, too
            self._began = time.monotonic() - saved.elapsed_s
            saved.breaks += 1
        saved.wire_bytes = max(saved.wire_bytes, self.tally.wire_bytes)
        saved.breaks = max(saved.breaks, self.tally.breaks)
        self.tally = saved

    def advance(self, batch: Batch) -> None:
        """The training is at the next step, which learns from `batch`."""
        self.step += 1
        if not torch.equal(batch.ids, self.plan.ids(self.step)):
            raise EdgecompressError(
                f"step {self.step} trains on other samples than planned: a bug of "
                "edgecompress, please report it"
            )
        now = time.monotonic()
        self.tally.step_ms.append(1e3 * (now - self._last))
        self.tally.wait_ms.append(self._waited)
        self.tally.steps = self.step
        self.tally.samples += len(batch.ids)
        self._last = now
        self._waited = 0.0

    def waited(self, wait: Callable[[], T]) -> T:
        """The result of `wait`; its time counts as waiting, in the step that it delays."""
        began = time.monotonic()
        result = wait()
        self._waited += 1e3 * (time.monotonic() - began)
        return result

    def wire_bytes(self) -> int:
        """Bytes of all frames so far."""
        return self.tally.wire_bytes + self.carried()

    def saved(self) -> Kept:
        """The tally as JSON values, for `rewind`."""
        elapsed_s = time.monotonic() - self._began
        return asdict(replace(self.tally, elapsed_s=elapsed_s, wire_bytes=self.wire_bytes()))

    def end_epoch(self, row: EpochRow) -> None:
        """Add a row to the timeline."""
        self.tally.timeline.append(
            {
                "epoch": row.epoch,
                "step": self.step,
                "time_s": round(time.monotonic() - self._began, 3),
                "validation_accuracy": row.validation_accuracy,
                "payload_bytes": self.tally.payload_bytes,
                "wire_bytes": self.wire_bytes(),
            }
        )
