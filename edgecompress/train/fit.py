"""The training loop. One for every method: the loss, and what happens after an epoch, come from outside."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgecompress.core.shrink import Keep, shrink
from edgecompress.data import DataSet, Images
from edgecompress.errors import EdgecompressError
from edgecompress.train.history import EpochRow
from edgecompress.train.reshape import carry_optimizer
from edgecompress.train.schedule import warmup_linear

SMALL_PARAMS = 1_000_000
"""Below this many parameters a plain network bears the learning rate of a normalised one."""


@dataclass(frozen=True)
class Batch:
    """What a loss may look at: sample `ids` (B,) in the training split, normalised `images` (B, C, H, W), `labels` (B,)."""

    ids: Tensor
    images: Tensor
    labels: Tensor


Loss = Callable[[Tensor, Batch], Tensor]
"""(logits (B, K), batch) -> mean loss, a scalar."""


@dataclass(frozen=True)
class FitSettings:
    """How to train. `warmup` is the share of steps over which the rate rises; `clip` bounds the gradient's norm."""

    epochs: int
    batch_size: int = 32
    learning_rate: float = 3e-4
    optimizer: str = "adamw"
    weight_decay: float = 5e-4
    warmup: float = 0.15
    clip: float = 1.0
    dropout: float | None = None
    """Probability of every dropout layer during this training; None leaves each its own."""


@dataclass(frozen=True)
class FitResult:
    """Rows of all epochs, the number of the one whose weights `model` now holds, and whether it was `eligible`."""

    history: tuple[EpochRow, ...]
    best_epoch: int
    model: nn.Module
    eligible: bool = True

    @property
    def best(self) -> EpochRow:
        """The row of the chosen epoch."""
        return self.history[self.best_epoch - 1]


@dataclass(frozen=True)
class Hooks:
    """What a caller may hang into the loop.

    `on_step(step, steps)` is called after each step. `cut(model, epoch)` is called after an epoch's training and before its validation: the
    network is shrunk to the masks that it returns, `mend(model, small, keep)` may change the smaller one, and training goes on with it.
    `eligible(model)` says which epochs may be chosen. After `patience` epochs without improvement on an eligible one training stops.
    """

    on_step: Callable[[int, int], None] | None = None
    cut: Callable[[nn.Module, int], Keep | None] | None = None
    mend: Callable[[nn.Module, nn.Module, Keep], object] | None = None
    eligible: Callable[[nn.Module], bool] | None = None
    patience: int | None = None


def cross_entropy(logits: Tensor, batch: Batch) -> Tensor:
    """Mean cross-entropy against the labels."""
    return F.cross_entropy(logits, batch.labels)


def smoothed(smoothing: float) -> Loss:
    """Mean cross-entropy against labels that keep 1 - `smoothing` and share the rest (Szegedy et al. 2016)."""
    return lambda logits, batch: F.cross_entropy(logits, batch.labels, label_smoothing=smoothing)


def make_optimizer(model: nn.Module, settings: FitSettings) -> torch.optim.Optimizer:
    """AdamW, or SGD with Nesterov momentum 0.9, over the parameters that need a gradient."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if settings.optimizer == "sgd":
        rate, decay = settings.learning_rate, settings.weight_decay
        return torch.optim.SGD(parameters, lr=rate, momentum=0.9, nesterov=True, weight_decay=decay, fused=True)
    return torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True)


def batches(data: DataSet, settings: FitSettings, device: torch.device, generator: torch.Generator) -> Iterator[Batch]:
    """One epoch of training batches in random order; a last batch of one sample is left out (BatchNorm needs two)."""
    split = data.train
    order = torch.randperm(len(split), generator=generator)
    for ids in order.split(settings.batch_size):
        if len(ids) < 2 <= len(split):
            continue
        images = data.augmentation(data.normalised(split.pixels[ids].to(device)), generator)
        yield Batch(ids, images, split.labels[ids].to(device))


@torch.no_grad()
def evaluate(model: nn.Module, data: DataSet, split: Images, device: torch.device, size: int = 128) -> tuple[float, float]:
    """(mean cross-entropy, accuracy in 0..1) of `model` on `split`, in eval mode; the model's mode is put back."""
    was_training = model.training
    model.eval()
    loss, correct = 0.0, 0
    for start in range(0, len(split), size):
        labels = split.labels[start : start + size].to(device)
        logits = model(data.normalised(split.pixels[start : start + size].to(device)))
        loss += float(F.cross_entropy(logits, labels, reduction="sum"))
        correct += int((logits.argmax(1) == labels).sum())
    model.train(was_training)
    return loss / len(split), correct / len(split)


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
    """Train `model` in place and leave it, in eval mode, with the weights of the best eligible epoch; `result.model` is it, or what was cut
    from it.

    The best epoch has the highest validation accuracy, then the lowest validation loss. Where no epoch was eligible, the last one's weights
    stay. The same seed, data and thread count give the same result. Raises `EdgecompressError` naming the step when the loss is not finite.
    """
    hooks = hooks or Hooks()
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    run = _Run(model, make_optimizer(model, settings), settings, math.ceil(len(data.train) / settings.batch_size) * settings.epochs, hooks)
    best = _Best()
    rows: list[EpochRow] = []
    for epoch in range(1, settings.epochs + 1):
        start = time.perf_counter()
        train_loss = run.epoch(batches(data, settings, device, generator), loss, epoch)
        seconds = time.perf_counter() - start
        params = sum(p.numel() for p in run.model.parameters())
        at_cut = run.cut(epoch, device)
        validation_loss, accuracy = evaluate(run.model, data, data.validation, device)
        rows.append(EpochRow(epoch, train_loss, validation_loss, accuracy, run.rate, seconds, params, at_cut))
        best.see(run.model, rows[-1], hooks.eligible)
        if hooks.patience is not None and best.epoch and epoch - best.epoch >= hooks.patience:
            break
    chosen = best.restored(run.model)
    chosen.zero_grad(set_to_none=True)
    chosen.eval()
    return FitResult(tuple(rows), best.epoch or len(rows), chosen, best.epoch > 0)


class _Best:
    """The best eligible epoch so far, and its weights."""

    def __init__(self) -> None:
        self.epoch = 0
        self._key: tuple[float, float] | None = None
        self._model: nn.Module | None = None
        self._state: dict[str, Tensor] = {}

    def see(self, model: nn.Module, row: EpochRow, eligible: Callable[[nn.Module], bool] | None) -> None:
        key = (row.validation_accuracy, -row.validation_loss)
        if (self._key is None or key > self._key) and (eligible is None or eligible(model)):
            self._key, self.epoch, self._model = key, row.epoch, model
            self._state = {k: v.detach().clone() for k, v in model.state_dict().items()}

    def restored(self, last: nn.Module) -> nn.Module:
        if self._model is None:
            return last
        self._model.load_state_dict(self._state)
        return self._model


class _Run:
    """The network being trained, its optimizer, and the learning rate of the step."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, settings: FitSettings, total: int, hooks: Hooks) -> None:
        self.model, self.optimizer, self.settings, self.total, self.hooks = model, optimizer, settings, total, hooks
        self.step, self.rate = 0, 0.0

    def epoch(self, drawn: Iterator[Batch], loss: Loss, epoch: int) -> float:
        """One epoch of training; the mean loss."""
        loss_sum, seen = 0.0, 0
        self.model.train()
        with dropout_of(self.model, self.settings.dropout):
            for batch in drawn:
                self._advance()
                value = _train_step(self.model, batch, loss, self.optimizer, self.settings, f"epoch {epoch}, step {self.step}")
                loss_sum += value * len(batch.labels)
                seen += len(batch.labels)
        return loss_sum / seen

    def _advance(self) -> None:
        self.rate = self.settings.learning_rate * warmup_linear(self.step, self.total, self.settings.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate
        if self.hooks.on_step is not None:
            self.hooks.on_step(self.step, self.total)
        self.step += 1

    def cut(self, epoch: int, device: torch.device) -> int:
        """Shrink the network if the caller asks for it, and carry the optimizer's moments over. Returns the channels that went."""
        keep = self.hooks.cut(self.model, epoch) if self.hooks.cut is not None else None
        gone = sum(int((~mask).sum()) for mask in keep.values()) if keep else 0
        if not keep or not gone:
            return 0
        small = shrink(self.model, keep).to(device)
        if self.hooks.mend is not None:
            self.hooks.mend(self.model, small, keep)
        fresh = make_optimizer(small, self.settings)
        carry_optimizer(self.optimizer, fresh, self.model, small, keep)
        self.model, self.optimizer = small, fresh
        return gone


def _train_step(model: nn.Module, batch: Batch, loss: Loss, optimizer: torch.optim.Optimizer, settings: FitSettings, where: str) -> float:
    """One step of gradient descent. Returns the loss. Raises `EdgecompressError` naming `where` when it is not finite."""
    value = loss(model(batch.images), batch)
    number = float(value.detach())
    if not math.isfinite(number):
        raise EdgecompressError(f"loss is {number} at {where}: lower --learning-rate ({settings.learning_rate:g})")
    optimizer.zero_grad()
    value.backward()
    nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
    optimizer.step()
    return number


@contextlib.contextmanager
def dropout_of(model: nn.Module, probability: float | None) -> Iterator[None]:
    """Give every dropout layer of `model` one probability, and its own back afterwards."""
    kinds = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
    own = [(m, m.p) for m in model.modules() if isinstance(m, kinds)] if probability is not None else []
    for module, _ in own:
        module.p = probability if probability is not None else module.p
    try:
        yield
    finally:
        for module, p in own:
            module.p = p


def default_settings(model: nn.Module, data: DataSet, epochs: int | None = None, normalised: bool = True) -> FitSettings:
    """Settings that train from scratch in minutes: fewer, slower epochs for a wide plain network (no normalisation) than for others.

    Up to 10,000 training images: 4 epochs at 3e-4 for plain networks of at least `SMALL_PARAMS` parameters, 12 at 1e-3 for others, without
    dropout, which slows a short run more than it helps. Above: 30 epochs, batches of 128, the network's own dropout.
    """
    large = len(data.train) > 10_000
    steady = normalised or sum(p.numel() for p in model.parameters()) < SMALL_PARAMS
    rate = 1e-3 if steady else 3e-4
    settings = FitSettings(epochs=30 if large else 12 if steady else 4, learning_rate=rate, dropout=None if large else 0.0)
    settings = replace(settings, batch_size=128) if large else settings
    return settings if epochs is None else replace(settings, epochs=epochs)
