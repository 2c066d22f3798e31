"""The training loop, the only one: losses, cuts, and what happens after an epoch are passed in.

Several networks may train at once, each batch passing once through each of them (`fit_together`);
`fit` is the case of one.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from edgecompress import interrupts
from edgecompress.core.convolutions import safe_convolutions
from edgecompress.data import DataSet
from edgecompress.errors import EdgecompressError
from edgecompress.train import distributed
from edgecompress.train.batches import Batch, batches
from edgecompress.train.companion import Companion, Kept, Moved, Onlooker
from edgecompress.train.learner import FitResult, Hooks, Learner
from edgecompress.train.losses import Loss, label_loss, smoothed
from edgecompress.train.modes import dropout_of, evaluating, outputs_of
from edgecompress.train.optimizers import make_optimizer
from edgecompress.train.pace import Lap, Pace
from edgecompress.train.run import Run
from edgecompress.train.settings import FitSettings

__all__ = [
    "Companion",
    "FitResult",
    "Hooks",
    "Kept",
    "Learner",
    "Loss",
    "Moved",
    "Onlooker",
    "dropout_of",
    "fit",
    "fit_together",
    "label_loss",
    "make_optimizer",
    "smoothed",
]


def fit(
    model: nn.Module,
    data: DataSet,
    loss: Loss,
    settings: FitSettings,
    *,
    seed: int,
    device: torch.device,
    hooks: Hooks | None = None,
) -> FitResult:
    """Train `model` in place and leave it, in eval mode, with the weights of the best eligible
    epoch. `result.model` is `model`, or the network that was cut from it.

    The best epoch has the highest validation accuracy, then the lowest validation loss; before each
    validation the BatchNorms' statistics are estimated again. If no epoch was eligible, the weights
    are those of the last one. The same seed, data and thread count give the same result. Raises
    `EdgecompressError` naming the step when the loss is not finite.
    """
    learner = Learner(model, loss, settings, hooks or Hooks())
    return fit_together({"": learner}, data, seed=seed, device=device)[""]


def fit_together(
    learners: Mapping[str, Learner], data: DataSet, *, seed: int, device: torch.device
) -> dict[str, FitResult]:
    """Train several networks on the same batches. Each is trained as by `fit`; its loss finds the
    logits (B, K) of the others in `batch.logits`, by name.

    Epochs (or the time that decides them), batch size, augmentation and views are those of the
    first learner. Training ends early when every learner has run out of patience.
    """
    settings = next(iter(learners.values())).settings
    each = math.ceil(len(data.train) / settings.batch_size)  # steps
    # dropout differs between processes that share a batch
    torch.manual_seed(seed + 7919 * distributed.rank())

    with contextlib.ExitStack() as stack:
        runs = {
            name: stack.enter_context(Run(name, learner, each * settings.epochs, device))
            for name, learner in learners.items()
        }
        example = torch.zeros(1, *data.image_shape, device=device)  # (1, C, H, W)
        resumed = {name: run.resume(example) for name, run in runs.items()}
        epoch, done = next(iter(resumed.values()))
        for run in runs.values():
            with torch.no_grad(), evaluating(run.model):
                outputs_of(run.model, example)  # settles in which order in memory it can run
            run.consider_initial(data)
        epochs, pace = settings.epochs, None
        if settings.time_s is not None:
            pace = Pace(settings.time_s)
            first = pace.begin(measured(runs, data, settings, device, seed), epoch - 1)
            epochs = distributed.agreed_count(first, device)
            for run in runs.values():
                run.set_length(epochs * each)

        while epoch <= epochs:
            start = time.perf_counter()
            drawn = batches(data, settings, device, seed, epoch, skip=done)
            with safe_convolutions(device):
                _train_epoch(runs, drawn, epoch, done)
            seconds = time.perf_counter() - start
            done = 0  # only the epoch that a training resumes in has batches done

            for run in runs.values():
                run.end_epoch(data, epoch, seconds if len(runs) == 1 else run.seconds)
            if all(run.out_of_patience(epoch) for run in runs.values()):
                break
            if pace is not None:
                epochs = distributed.agreed_count(pace.after(epoch), device)
                for run in runs.values():
                    run.set_length(epochs * each)
            epoch += 1

        return {name: run.result() for name, run in runs.items()}


def measured(
    runs: Mapping[str, Run], data: DataSet, settings: FitSettings, device: torch.device, seed: int
) -> float:
    """Seconds of an epoch with its validation, from a few steps, which leave no trace: the training
    that follows is that of a given number of epochs.
    """
    lap = Lap(alone=distributed.size() == 1)
    own = [device] if device.type == "cuda" else []
    with contextlib.ExitStack() as stack, safe_convolutions(device), torch.random.fork_rng(own):
        for run in runs.values():
            stack.enter_context(run.undone())
        begun = time.perf_counter()
        for number, batch in enumerate(batches(data, settings, device, seed, 1)):
            _train_epoch(runs, iter([batch]), 1, number)
            lap.add(time.perf_counter() - begun)
            begun = time.perf_counter()
            if lap.enough():
                break
    checked = sum(run.validation_s(data) for run in runs.values())
    return lap.epoch_s(math.ceil(len(data.train) / settings.batch_size)) + checked


def _train_epoch(runs: Mapping[str, Run], drawn: Iterator[Batch], epoch: int, done: int) -> None:
    """Train on the batches `drawn`, which follow the first `done` of `epoch`."""
    with contextlib.ExitStack() as stack:
        for run in runs.values():
            stack.enter_context(run.training(resumed=done > 0))

        for number, batch in enumerate(drawn, start=done + 1):
            interrupts.check()
            # every network sees the batch before any of them learns from it
            logits = {name: _forward(run, batch) for name, run in runs.items()}  # each (B, K)

            for name, run in runs.items():
                peers = {peer: value.detach() for peer, value in logits.items() if peer != name}
                _step(run, logits[name], replace(batch, logits=peers), epoch)
                run.save(epoch, number)


def _forward(run: Run, batch: Batch) -> Tensor:
    """Logits (B, K), float32."""
    with run.timed(), run.autocast():
        logits = outputs_of(run.model, batch.images)  # (B, C, h, w) -> (B, K)
    return logits.float()


def _step(run: Run, logits: Tensor, batch: Batch, epoch: int) -> None:
    """One step of gradient descent on `logits` (B, K)."""
    with run.timed():
        run.begin_step()
        loss = run.loss(logits, batch)  # (B, K), labels (B,) -> scalar
        value = float(loss.detach())
        if not math.isfinite(value):
            raise _not_finite(run, value, epoch)

        run.optimizer.zero_grad()
        loss.backward()
        if distributed.size() > 1:
            share = len(batch.labels) / batch.global_size
            distributed.sum_gradients_(run.parameters(), share)
        if run.settings.clip is not None:
            nn.utils.clip_grad_norm_(run.parameters(), run.settings.clip)
        run.optimizer.step()
        run.end_step(value, len(batch.labels))


def _not_finite(run: Run, value: float, epoch: int) -> EdgecompressError:
    whose = f" of {run.name}" if run.name else ""
    return EdgecompressError(
        f"loss{whose} is {value} at epoch {epoch}, step {run.step}: lower --learning-rate "
        f"({run.settings.learning_rate:g})"
    )
