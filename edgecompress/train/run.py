"""A network in training: its optimizer, its step and learning rate, its epochs so far."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from edgecompress.core.shrink import shrink
from edgecompress.data import DataSet
from edgecompress.train import distributed
from edgecompress.train.averaging import Averaged
from edgecompress.train.batches import evaluate
from edgecompress.train.best import BestEpoch
from edgecompress.train.companion import Companion, NoCompanion
from edgecompress.train.freeze import freeze_, thaw_
from edgecompress.train.history import EpochRow
from edgecompress.train.learner import FitResult, Learner
from edgecompress.train.modes import autocast_for, dropout_of, set_layout_
from edgecompress.train.optimizers import make_optimizer, set_rate_
from edgecompress.train.reshape import carry_optimizer, carry_picked
from edgecompress.train.resume import FitState, Masks, copied, replay_cuts
from edgecompress.train.schedule import factor
from edgecompress.train.statistics import IMAGES, reestimate_

PART = 256
"""Validation images from which the time of all is measured."""


class Run:
    """A learner during its training of `steps` steps; a context that prepares the network for it.

    `rate` is the learning rate of the last step; `loss_sum` over `seen` samples, and `seconds`, are
    those of the current epoch.
    """

    def __init__(self, name: str, learner: Learner, steps: int, device: torch.device) -> None:
        self.name = name
        self.model = learner.model
        self.loss = learner.loss
        self.settings = learner.settings
        self.hooks = learner.hooks
        companion = learner.hooks.companion
        self.companion: Companion = NoCompanion() if companion is None else companion
        self.device = device
        self.autocast = autocast_for(self.settings.precision, device)

        self.steps = steps
        self.step = 0
        self.rate = 0.0
        self.loss_sum = 0.0
        self.seen = 0
        self.seconds = 0.0

        self.rows: list[EpochRow] = []
        self.cuts: list[Masks] = []
        self.best = BestEpoch()
        self.initial: EpochRow | None = None
        self.averaged: Averaged | None = None

    def __enter__(self) -> Run:
        if self.device.type == "cpu":
            set_layout_(self.model, torch.channels_last)
        self._froze = freeze_(self.model, self.settings.frozen)
        distributed.agree_(self.model)
        self.optimizer = self._new_optimizer(self.model)
        if self.settings.average:
            self.averaged = Averaged(self.model, self.settings.average, self.steps)
        return self

    def __exit__(self, *_: object) -> None:
        if self._froze:
            thaw_(self.model, self.settings.frozen)

    def _new_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return make_optimizer(model, self.settings, self.companion.parameters())

    def parameters(self) -> list[nn.Parameter]:
        """Those of the network and of its companion."""
        return [*self.model.parameters(), *self.companion.parameters()]

    def set_length(self, steps: int) -> None:
        """The training has so many steps."""
        self.steps = steps
        if self.averaged is not None:
            self.averaged.set_length(steps)

    # One epoch of training

    @contextlib.contextmanager
    def training(self, *, resumed: bool = False) -> Iterator[None]:
        """An epoch, new or `resumed`: training mode, except for what is frozen, with the dropout of
        the settings.
        """
        if not resumed:
            self.loss_sum = 0.0
            self.seen = 0
            self.seconds = 0.0
        self.model.train()
        for name in self.settings.frozen:
            self.model.get_submodule(name).eval()
        self.companion.attach(self.model)
        try:
            with dropout_of(self.model, self.settings.dropout):
                yield
        finally:
            self.companion.detach()

    @contextlib.contextmanager
    def undone(self) -> Iterator[None]:
        """Steps inside the context leave no trace in a training that has not begun."""
        before = self.state(1, 0)
        hooks, self.hooks = self.hooks, replace(self.hooks, keep=None, on_step=None)
        try:
            yield
        finally:
            self.hooks = hooks
            self.model.load_state_dict(before["model"])
            self.companion.take(before["companion"])
            self.optimizer = self._new_optimizer(self.model)
            if self.averaged is not None:
                self.averaged.restart(self.model)
            self.step, self.rate = before["step"], before["rate"]

    def validation_s(self, data: DataSet) -> float:
        """Seconds of an epoch's validation, from a part of it."""
        begun, split = time.perf_counter(), data.validation
        part = split.rows(torch.arange(min(PART, len(split))))
        evaluate(self.model, data, part, self.device)
        seconds = time.perf_counter() - begun
        return seconds * (len(split) + IMAGES) / len(part)

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """Count the time inside the context as the epoch's."""
        start = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - start

    def begin_step(self) -> None:
        """Set the learning rate of the next step, and count the step."""
        settings = self.settings
        self.rate = settings.learning_rate * factor(
            settings.schedule,
            self.step,
            self.steps,
            settings.warmup,
            [epoch / settings.epochs for epoch in settings.milestones],
            settings.gamma,
        )
        set_rate_(self.optimizer, self.rate)
        if self.hooks.on_step is not None:
            self.hooks.on_step(self.step, self.steps)
        self.step += 1

    def end_step(self, loss: float, samples: int) -> None:
        """Take in the step's weights, and add its mean `loss` over `samples` to the epoch's."""
        if self.averaged is not None:
            self.averaged.update(self.model)
        self.loss_sum += loss * samples
        self.seen += samples

    # Between epochs

    def consider_initial(self, data: DataSet) -> None:
        """Validate the network as it stands before the training: it is what is kept if no epoch is
        better.
        """
        if not self.hooks.keep_initial or self.hooks.begin is not None:
            return
        loss, accuracy = evaluate(self.model, data, data.validation, self.device)
        params = sum(p.numel() for p in self.model.parameters())
        self.initial = EpochRow(0, math.nan, loss, accuracy, 0.0, 0.0, params)
        self.best.update(self.model, self.initial, self.hooks.eligible, 0)

    def end_epoch(self, data: DataSet, epoch: int, seconds: float) -> None:
        """Cut the network where the hooks ask for it, validate it, and record the epoch."""
        distributed.agree_(self.model)
        loss_sum = distributed.summed(self.loss_sum, self.device)
        seen = distributed.summed(self.seen, self.device)
        params = sum(p.numel() for p in self.model.parameters())
        removed = self._cut(epoch)
        with self._as_kept():
            reestimate_(self.model, data, self.device, self.settings.frozen)
            validation_loss, accuracy = evaluate(self.model, data, data.validation, self.device)
            row = EpochRow(
                epoch=epoch,
                train_loss=loss_sum / seen,
                validation_loss=validation_loss,
                validation_accuracy=accuracy,
                learning_rate=self.rate,
                seconds=seconds,
                params=params,
                cut=removed,
            )
            self.rows.append(row)
            if self.hooks.on_epoch is not None:
                self.hooks.on_epoch(row)
            self.best.update(self.model, row, self.hooks.eligible, len(self.cuts))

    def _as_kept(self) -> contextlib.AbstractContextManager[None]:
        """The network with the weights that may be kept: the averaged ones, if there are any."""
        if self.averaged is None:
            return contextlib.nullcontext()
        return self.averaged.in_place(self.model)

    def _cut(self, epoch: int) -> int:
        """Shrink the network to the masks of the hook, and slice the optimizer's moments with it.
        Returns the number of channels removed.
        """
        keep = self.hooks.cut(self.model, epoch) if self.hooks.cut is not None else None
        removed = sum(int((~mask).sum()) for mask in keep.values()) if keep else 0
        if not keep or not removed:
            return 0

        small = shrink(self.model, keep).to(self.device)
        if self.hooks.mend is not None:
            self.hooks.mend(self.model, small, keep)
        moved = self.companion.follow(self.model, small, keep)

        optimizer = self._new_optimizer(small)
        carry_optimizer(self.optimizer, optimizer, self.model, small, keep)
        carry_picked(self.optimizer, optimizer, moved)

        self.model = small
        self.optimizer = optimizer
        if self.averaged is not None:
            self.averaged.restart(small)
        self.cuts.append({group.name: mask.cpu() for group, mask in keep.items()})
        return removed

    def out_of_patience(self, epoch: int) -> bool:
        """Has no epoch been better than the best one for `hooks.patience` epochs?"""
        patience = self.hooks.patience
        return patience is not None and self.best.found and epoch - self.best.epoch >= patience

    # Stopping and resuming

    def save(self, epoch: int, done: int) -> None:
        """Pass the state after `done` batches of `epoch` to the hook `keep`, if it is due."""
        every = self.hooks.keep_every
        due = self.step == self.hooks.keep_last or (every > 0 and self.step % every == 0)
        if self.hooks.keep is not None and due:
            self.hooks.keep(dict(self.state(epoch, done)))

    def state(self, epoch: int, done: int) -> FitState:
        """The state after `done` batches of `epoch`; it shares no memory with the training."""
        return {
            "epoch": epoch,
            "done": done,
            "step": self.step,
            "rate": self.rate,
            "loss_sum": self.loss_sum,
            "seen": self.seen,
            "model": copied(self.model),
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "random": torch.get_rng_state(),
            "rows": [row.as_dict() for row in self.rows],
            "initial": None if self.initial is None else self.initial.as_dict(),
            "best": self.best.state(),
            "cuts": list(self.cuts),
            "companion": self.companion.kept(),
            "averaged": None if self.averaged is None else self.averaged.state(),
        }

    def resume(self, example: Tensor) -> tuple[int, int]:
        """Restore the hooks' state, if they have one, for inputs like `example` (1, C, H, W).
        Returns the epoch to continue with, and the number of its batches already done.
        """
        if self.hooks.begin is None:
            return 1, 0
        state = cast(FitState, self.hooks.begin)

        self.cuts = list(state["cuts"])
        models = replay_cuts(self.model, self.cuts, self.companion, example)
        self.model = models[-1]
        self.model.load_state_dict(state["model"])
        self.companion.take(state["companion"])
        if self.cuts:
            self.optimizer = self._new_optimizer(self.model)
        self.optimizer.load_state_dict(state["optimizer"])
        averaged = state.get("averaged")
        if self.averaged is not None and averaged is not None:
            self.averaged.resume(averaged)
        torch.set_rng_state(state["random"])

        self.step = state["step"]
        self.rate = state["rate"]
        self.loss_sum = state["loss_sum"]
        self.seen = state["seen"]
        self.rows = [EpochRow(**row) for row in state["rows"]]
        initial = state.get("initial")
        self.initial = None if initial is None else EpochRow(**initial)
        self.best.resume(state["best"], models)
        return state["epoch"], state["done"]

    def result(self) -> FitResult:
        """The network of the best epoch, in eval mode, its weights contiguous."""
        if self.averaged is not None and not self.best.found:
            self.averaged.put_into(self.model)
        model = self.best.restored(self.model)
        if self._froze:
            thaw_(model, self.settings.frozen)
        model.zero_grad(set_to_none=True)
        set_layout_(model, torch.contiguous_format)
        model.eval()
        best_epoch = self.best.epoch if self.best.found else len(self.rows)
        return FitResult(tuple(self.rows), best_epoch, model, self.best.found, self.initial)
