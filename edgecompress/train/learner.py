"""The input and output of a training: a network with its loss, settings and hooks, and its
result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import nn

from edgecompress.core.shrink import Keep
from edgecompress.train.companion import Companion, Kept
from edgecompress.train.history import EpochRow
from edgecompress.train.losses import Loss
from edgecompress.train.settings import FitSettings


@dataclass(frozen=True)
class Hooks:
    """Callbacks and companions of a training.

    `on_step(step, steps)` is called as each step begins, with the number of steps done;
    `on_epoch(row)` after each epoch's validation.

    `cut(model, epoch)` is called between an epoch's training and its validation. The network is
    shrunk to the keep masks that it returns, `mend(model, small, keep)` may change the smaller
    network, and training continues with that one.

    `eligible(model)` decides which epochs may be chosen. Training stops after `patience` epochs
    without improvement on an eligible one. With `keep_initial` the network as it stands before the
    training is a candidate too, as epoch 0.

    `keep(state)` is called after every `keep_every` steps and after step `keep_last`. A training
    with `begin`, such a state, resumes from it and ends with the same result.
    """

    on_step: Callable[[int, int], None] | None = None
    on_epoch: Callable[[EpochRow], None] | None = None
    cut: Callable[[nn.Module, int], Keep | None] | None = None
    mend: Callable[[nn.Module, nn.Module, Keep], object] | None = None
    eligible: Callable[[nn.Module], bool] | None = None
    patience: int | None = None
    keep_initial: bool = False
    companion: Companion | None = None
    keep: Callable[[Kept], None] | None = None
    keep_every: int = 0
    keep_last: int = 0
    begin: Kept | None = None


@dataclass(frozen=True)
class Learner:
    """A network to train, with its loss. Learners that train together share the first one's epochs,
    batches and views; the rest of `settings` is each one's own.
    """

    model: nn.Module
    loss: Loss
    settings: FitSettings
    hooks: Hooks = field(default_factory=Hooks)


@dataclass(frozen=True)
class FitResult:
    """The rows of all epochs, the number (from 1) of the epoch whose weights `model` now holds, and
    whether that epoch was `eligible`. `best_epoch` 0 is the network before the training, of which
    `initial` is the validation, where that was a candidate.
    """

    history: tuple[EpochRow, ...]
    best_epoch: int
    model: nn.Module
    eligible: bool = True
    initial: EpochRow | None = None

    @property
    def best(self) -> EpochRow:
        """The row of the chosen epoch; that of the network before the training has a training loss
        of NaN.
        """
        if self.best_epoch == 0 and self.initial is not None:
            return self.initial
        return self.history[self.best_epoch - 1]
