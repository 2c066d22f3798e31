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

from edgecompress.data import DataSet, Images
from edgecompress.errors import EdgecompressError
from edgecompress.train.history import EpochRow
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
    """Rows of all epochs, and the number of the one whose weights the model now holds."""

    history: tuple[EpochRow, ...]
    best_epoch: int

    @property
    def best(self) -> EpochRow:
        """The row of the chosen epoch."""
        return self.history[self.best_epoch - 1]


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
    after_epoch: Callable[[nn.Module, EpochRow], None] | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> FitResult:
    """Train `model` in place and leave it, in eval mode, with the weights of the best validation epoch.

    The best epoch has the highest validation accuracy, then the lowest validation loss. `on_step(step, steps)` is called after each
    step. The same seed, data and thread count give the same result. Raises `EdgecompressError` naming the step when the loss is not finite.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    optimizer = make_optimizer(model, settings)
    total = math.ceil(len(data.train) / settings.batch_size) * settings.epochs
    rows: list[EpochRow] = []
    best: tuple[float, float] = (-1.0, 0.0)
    best_state: dict[str, Tensor] = {}
    best_epoch = 0

    def advance(step: int) -> float:
        rate = settings.learning_rate * warmup_linear(step, total, settings.warmup)
        for group in optimizer.param_groups:
            group["lr"] = rate
        if on_step is not None:
            on_step(step, total)
        return rate

    step = 0
    for epoch in range(1, settings.epochs + 1):
        start, loss_sum, seen, rate = time.perf_counter(), 0.0, 0, 0.0
        model.train()
        with dropout_of(model, settings.dropout):
            for batch in batches(data, settings, device, generator):
                rate = advance(step)
                step += 1
                value = _train_step(model, batch, loss, optimizer, settings, f"epoch {epoch}, step {step}")
                loss_sum += value * len(batch.labels)
                seen += len(batch.labels)
        validation_loss, accuracy = evaluate(model, data, data.validation, device)
        params = sum(p.numel() for p in model.parameters())
        row = EpochRow(epoch, loss_sum / seen, validation_loss, accuracy, rate, time.perf_counter() - start, params)
        rows.append(row)
        if (accuracy, -validation_loss) > best or not best_state:
            best, best_epoch = (accuracy, -validation_loss), epoch
            best_state = {k: v.detach().clone() for k, v in model.state_dict().items()}
        if after_epoch is not None:
            after_epoch(model, row)
    if best_state:
        model.load_state_dict(best_state)
    model.zero_grad(set_to_none=True)
    model.eval()
    return FitResult(tuple(rows), best_epoch)


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
