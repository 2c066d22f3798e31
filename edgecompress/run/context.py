"""What a training uses (the data, the device, its seed), and what a stage may use besides the
state.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from edgecompress.data import DataSet, Preprocess
from edgecompress.models.registry import ModelSource
from edgecompress.run.directory import RunDirectory
from edgecompress.run.stage import RunSettings


class Reporter(Protocol):
    """Where progress goes. The command line shows bars; a library caller may pass `Silent()`."""

    def stage(self, number: int, total: int, name: str) -> None:
        """Stage `number` of `total` begins."""

    def step(self, done: int, total: int, text: str) -> None:
        """`done` of `total` steps of the work called `text` are done."""

    def note(self, text: str) -> None:
        """A line for the reader."""

    def epoch(self, text: str) -> None:
        """An epoch of a training is done: a line for a log."""


class Silent:
    """A reporter that shows nothing."""

    def stage(self, number: int, total: int, name: str) -> None:
        """Nothing."""

    def step(self, done: int, total: int, text: str) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def epoch(self, text: str) -> None:
        """Nothing."""


@dataclass
class Fresh:
    """A network that the user's own code returned, called with `seed`: for the first training that
    begins with it.
    """

    source: ModelSource
    seed: int
    model: nn.Module | None

    def take(self, source: ModelSource, seed: int) -> nn.Module | None:
        """The network, once, where it is that of `source` and `seed`."""
        if (source, seed) != (self.source, self.seed):
            return None
        model, self.model = self.model, None
        return model


def stage_seed(seed: int, number: int) -> int:
    """The seed of the stage of this number in a run."""
    return seed * 1000 + number


@dataclass(frozen=True)
class TrainingContext:
    """What a network trains on, and is cut on while it trains, in a run or outside of one."""

    data: DataSet
    device: torch.device
    seed: int

    @property
    def example(self) -> Tensor:
        """One zero image (1, C, H, W) of the data's shape."""
        return torch.zeros(1, *self.data.image_shape)


@dataclass(frozen=True)
class Context(TrainingContext):
    """What a stage may use besides the state. `folder` is its own; `seed` differs per stage."""

    recipe: RunSettings
    run: RunDirectory
    folder: Path
    reporter: Reporter
    threads: int
    fresh: Fresh | None = None
    deadline: float | None = None
    """When the stage's trainings are to end, as `time.perf_counter` counts; None: at no time."""

    def reading_as(self, preprocess: Preprocess | None) -> Context:
        """The same context for a network that reads pixels in its own way; None: as the data."""
        if preprocess is None:
            return self
        return replace(self, data=replace(self.data, preprocess=preprocess))

    def seconds_left(self, share: float = 1.0) -> float | None:
        """A share of the time that the stage's trainings still have; None: any."""
        if self.deadline is None:
            return None
        return share * max(0.0, self.deadline - time.perf_counter())

    def progress(self, text: str) -> Callable[[int, int], None]:
        """An `on_step` for the training loop."""
        return lambda done, total: self.reporter.step(done, total, text)


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
