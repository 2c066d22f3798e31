"""The training loop. One for every method: losses, and what happens after an epoch, come from
outside.

Several networks may train at once, each batch going once through each of them (`fit_together`);
`fit` is the case of one.
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from edgecompress.core import trace
from edgecompress.core.convolutions import safe_convolutions
from edgecompress.core.shrink import Keep, shrink
from edgecompress.data import DataSet
from edgecompress.errors import EdgecompressError
from edgecompress.train import distributed
from edgecompress.train.batches import Batch, batches, evaluate
from edgecompress.train.history import EpochRow
from edgecompress.train.reshape import carry_optimizer, carry_picked
from edgecompress.train.schedule import factor
from edgecompress.train.settings import FitSettings

Loss = Callable[[Tensor, Batch], Tensor]
"""(logits (B, K), batch) -> mean loss, a scalar."""


@dataclass(frozen=True)
class FitResult:
    """Rows of all epochs, the number of the one whose weights `model` now holds, and whether it was
    `eligible`.
    """

    history: tuple[EpochRow, ...]
    best_epoch: int
    model: nn.Module
    eligible: bool = True

    @property
    def best(self) -> EpochRow:
        """The row of the chosen epoch."""
        return self.history[self.best_epoch - 1]


Kept = dict[str, Any]
"""A training as it stood after one of its steps: tensors, numbers and texts, nested, as
`torch.save` writes and safely reads them.
"""

Moved = tuple[nn.Parameter, nn.Parameter, Callable[[Tensor], Tensor]]
"""A parameter before a cut, the one in its place, and how a moment of the first becomes one of the
second.
"""


class Companion(Protocol):
    """Parameters that train beside a network and are dropped with the training, e.g. the adapters
    of a feature loss.
    """

    def parameters(self) -> Iterable[nn.Parameter]:
        """What trains."""

    def follow(self, model: nn.Module, small: nn.Module, keep: Keep) -> Sequence[Moved]:
        """Fit itself to `small`, which `keep` cut from `model`; what it changed."""

    def attach(self, model: nn.Module) -> None:
        """An epoch of training begins."""

    def detach(self) -> None:
        """It is over: let go of the network, which will be copied, cut and exported."""

    def kept(self) -> Kept:
        """What decides how it goes on from here."""

    def take(self, kept: Kept) -> None:
        """Go on from what `kept` gave; cuts that the network had until then were followed
        before.
        """


class Onlooker:
    """A `Companion` that trains nothing, and needs no change when the network is cut."""

    def parameters(self) -> Iterable[nn.Parameter]:
        """None."""
        return ()

    def follow(self, model: nn.Module, small: nn.Module, keep: Keep) -> Sequence[Moved]:
        """Nothing to follow with."""
        return ()

    def detach(self) -> None:
        """The network may be cut now; `attach` brings the next one."""


@dataclass(frozen=True)
class Hooks:
    """What a caller may hang into the loop.

    `on_step(step, steps)` is called after each step, `on_epoch(row)` after each epoch's validation.
    `cut(model, epoch)` is called after an epoch's training and before its validation: the network
    is shrunk to the masks that it returns, `mend(model, small, keep)` may change the smaller one,
    and training goes on with it. `eligible(model)` says which epochs may be chosen. After
    `patience` epochs without improvement on an eligible one training stops. `keep(state)` is called
    after every `keep_every` steps and after step `keep_last`; a training with `begin`, such a
    state, goes on from there to the same result.
    """

    on_step: Callable[[int, int], None] | None = None
    on_epoch: Callable[[EpochRow], None] | None = None
    cut: Callable[[nn.Module, int], Keep | None] | None = None
    mend: Callable[[nn.Module, nn.Module, Keep], object] | None = None
    eligible: Callable[[nn.Module], bool] | None = None
    patience: int | None = None
    companion: Companion | None = None
    keep: Callable[[Kept], None] | None = None
    keep_every: int = 0
    keep_last: int = 0
    begin: Kept | None = None


@dataclass(frozen=True)
class Learner:
    """A network with its loss; `settings` other than the epochs, the batches and the views, which
    all learners share, are its own.
    """

    model: nn.Module
    loss: Loss
    settings: FitSettings
    hooks: Hooks = field(default_factory=Hooks)


def label_loss(logits: Tensor, batch: Batch) -> Tensor:
    """The task's loss against the labels: for a classification the mean cross-entropy."""
    return batch.task.loss(logits, batch.labels)


def smoothed(smoothing: float) -> Loss:
    """The task's loss; of a classification against labels that keep 1 - `smoothing` and share the
    rest (Szegedy et al. 2016).
    """
    return lambda logits, batch: batch.task.loss(logits, batch.labels, smoothing)


def make_optimizer(
    model: nn.Module, settings: FitSettings, more: Iterable[nn.Parameter] = ()
) -> torch.optim.Optimizer:
    """AdamW, Adam, or SGD with momentum 0.9, over the parameters that need a gradient, and
    `more`.
    """
    parameters = _rate_groups(model, settings, more)
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=rate,
            momentum=0.9,
            nesterov=settings.nesterov,
            weight_decay=decay,
            fused=True,
        )
    kind = torch.optim.Adam if settings.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, lr=rate, weight_decay=decay, fused=True)


def _rate_groups(
    model: nn.Module, settings: FitSettings, more: Iterable[nn.Parameter]
) -> list[dict[str, Any]]:
    """The parameters that need a gradient, those of `settings.faster` in groups of their own, each
    with its `factor` of the rate.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups, taken = [], set[str]()
    for prefix, factor_ in settings.faster:
        own = [(name, p) for name, p in named if name.startswith(prefix)]
        taken |= {name for name, _ in own}
        groups.append(
            {
                "params": [p for _, p in own],
                "factor": factor_,
                "lr": settings.learning_rate * factor_,
                "weight_decay": 0.0,
            }
        )
    rest = [p for name, p in named if name not in taken] + [p for p in more if p.requires_grad]
    return [{"params": rest, "factor": 1.0}, *groups]


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
    epoch; `result.model` is it, or what was cut from it.

    The best epoch has the highest validation accuracy, then the lowest validation loss. Where no
    epoch was eligible, the last one's weights stay. The same seed, data and thread count give the
    same result. Raises `EdgecompressError` naming the step when the loss is not finite.
    """
    return fit_together(
        {"": Learner(model, loss, settings, hooks or Hooks())}, data, seed=seed, device=device
    )[""]


def fit_together(
    learners: Mapping[str, Learner], data: DataSet, *, seed: int, device: torch.device
) -> dict[str, FitResult]:
    """Train several networks on the same batches, as `fit` does one; each loss finds the others'
    logits in `batch.logits`.

    Epochs, batch size, augmentation and views are those of the first learner. Training ends before
    its last epoch when every learner has run out of patience.
    """
    torch.manual_seed(
        seed + 7919 * distributed.rank()
    )  # dropout differs between processes that share a batch
    shared = next(iter(learners.values())).settings
    total = math.ceil(len(data.train) / shared.batch_size) * shared.epochs
    with contextlib.ExitStack() as stack:
        runs = {
            name: stack.enter_context(_Run(name, learner, total, device))
            for name, learner in learners.items()
        }
        begun = [run.begin(data) for run in runs.values()]
        first, done = begun[0]
        for epoch in range(first, shared.epochs + 1):
            start = time.perf_counter()
            _train_epoch(runs, batches(data, shared, device, seed, epoch, skip=done), epoch, done)
            done = 0
            seconds = time.perf_counter() - start
            for run in runs.values():
                run.end_epoch(data, epoch, seconds if len(runs) == 1 else run.spent)
            if all(run.out_of_patience(epoch) for run in runs.values()):
                break
        return {name: run.result() for name, run in runs.items()}


def _train_epoch(
    runs: Mapping[str, _Run], drawn: Iterator[Batch], epoch: int, done: int = 0
) -> None:
    with contextlib.ExitStack() as stack:
        stack.enter_context(safe_convolutions())
        for run in runs.values():
            stack.enter_context(run.training(afresh=not done))
        for number, batch in enumerate(drawn, start=done + 1):
            logits = {name: run.forward(batch) for name, run in runs.items()}
            for name, run in runs.items():
                others = {other: value.detach() for other, value in logits.items() if other != name}
                run.learn(logits[name], replace(batch, logits=others), epoch)
                run.keep(epoch, number)


class _Best:
    """The best eligible epoch so far, and its weights."""

    def __init__(self) -> None:
        self.epoch = 0
        self._key: tuple[float, float] | None = None
        self._model: nn.Module | None = None
        self._state: dict[str, Tensor] = {}
        self._cuts = 0

    def see(
        self,
        model: nn.Module,
        row: EpochRow,
        eligible: Callable[[nn.Module], bool] | None,
        cuts: int,
    ) -> None:
        key = (row.validation_accuracy, -row.validation_loss)
        if (self._key is None or key > self._key) and (eligible is None or eligible(model)):
            self._key, self.epoch, self._model, self._cuts = key, row.epoch, model, cuts
            self._state = {k: v.detach().clone() for k, v in model.state_dict().items()}

    def kept(self) -> Kept:
        """What `take` takes back."""
        return {
            "epoch": self.epoch,
            "key": list(self._key or ()),
            "state": self._state,
            "cuts": self._cuts,
        }

    def take(self, models: Sequence[nn.Module], kept: Kept) -> None:
        """Know again what was best, of `models`: the network before each of its cuts and after the
        last.
        """
        self.epoch, self._state, self._cuts = kept["epoch"], kept["state"], kept["cuts"]
        self._key = (kept["key"][0], kept["key"][1]) if kept["key"] else None
        self._model = models[self._cuts] if kept["key"] else None

    def restored(self, last: nn.Module) -> nn.Module:
        if self._model is None:
            return last
        self._model.load_state_dict(self._state)
        return self._model


class _Run:
    """A network in training: its optimizer, the learning rate of the step, its epochs so far."""

    def __init__(self, name: str, learner: Learner, total: int, device: torch.device) -> None:
        self.name, self.model, self.loss, self.settings, self.hooks = (
            name,
            learner.model,
            learner.loss,
            learner.settings,
            learner.hooks,
        )
        self.total, self.device, self.companion = total, device, learner.hooks.companion
        self.step, self.rate, self.loss_sum, self.seen, self.spent = 0, 0.0, 0.0, 0, 0.0
        self.best, self.rows, self.cuts = _Best(), list[EpochRow](), list[dict[str, Tensor]]()
        self.autocast = _autocast(self.settings.precision, device)

    def __enter__(self) -> _Run:
        if self.device.type == "cpu":
            _lay_out_(self.model, torch.channels_last)
        self._thawed = [
            p for p in _parameters_of(self.model, self.settings.frozen) if p.requires_grad
        ]
        for parameter in self._thawed:
            parameter.requires_grad_(False)
        distributed.agree_(self.model)
        self.optimizer = make_optimizer(self.model, self.settings, self._beside())
        return self

    def __exit__(self, *_: object) -> None:
        for parameter in _parameters_of(self.model, self.settings.frozen) if self._thawed else []:
            parameter.requires_grad_(True)

    def _beside(self) -> list[nn.Parameter]:
        return list(self.companion.parameters()) if self.companion is not None else []

    @contextlib.contextmanager
    def training(self, *, afresh: bool = True) -> Iterator[None]:
        """Training mode, but for what is frozen, with the dropout of the settings; an epoch that
        begins counts `afresh`.
        """
        if afresh:
            self.loss_sum, self.seen, self.spent = 0.0, 0, 0.0
        self.model.train()
        for name in self.settings.frozen:
            self.model.get_submodule(name).eval()
        if self.companion is not None:
            self.companion.attach(self.model)
        try:
            with dropout_of(self.model, self.settings.dropout):
                yield
        finally:
            if self.companion is not None:
                self.companion.detach()

    def keep(self, epoch: int, number: int) -> None:
        """Hand the state of the training after batch `number` of `epoch` to who asked for it."""
        keep, every = self.hooks.keep, self.hooks.keep_every
        due = self.step == self.hooks.keep_last or (every > 0 and self.step % every == 0)
        if keep is None or not due:
            return
        keep(
            {
                "epoch": epoch,
                "done": number,
                "step": self.step,
                "rate": self.rate,
                "loss_sum": self.loss_sum,
                "seen": self.seen,
                "model": {
                    name: value.detach().clone() for name, value in self.model.state_dict().items()
                },
                "optimizer": copy.deepcopy(self.optimizer.state_dict()),
                "random": torch.get_rng_state(),
                "rows": [row.as_dict() for row in self.rows],
                "best": self.best.kept(),
                "cuts": list(self.cuts),
                "companion": self.companion.kept() if self.companion is not None else {},
            }
        )

    def begin(self, data: DataSet) -> tuple[int, int]:
        """(first epoch, its batches already done), after going back to the state of the hooks, if
        any.
        """
        kept = self.hooks.begin
        if kept is None:
            return 1, 0
        models = [self.model]
        for cut in kept["cuts"]:
            groups = trace(self.model, torch.zeros(1, *data.image_shape, device=self.device)).groups
            keep = {group: cut[group.name] for group in groups if group.name in cut}
            small = shrink(self.model, keep).to(self.device)
            if self.companion is not None:
                self.companion.follow(self.model, small, keep)
            self.model = small
            models.append(small)
        self.cuts = list(kept["cuts"])
        self.model.load_state_dict(kept["model"])
        if self.companion is not None:
            self.companion.take(kept["companion"])
        if self.cuts:
            self.optimizer = make_optimizer(self.model, self.settings, self._beside())
        self.optimizer.load_state_dict(kept["optimizer"])
        torch.set_rng_state(kept["random"])
        self.step, self.rate, self.loss_sum, self.seen = (
            kept["step"],
            kept["rate"],
            kept["loss_sum"],
            kept["seen"],
        )
        self.rows = [EpochRow(**row) for row in kept["rows"]]
        self.best.take(models, kept["best"])
        return kept["epoch"], kept["done"]

    def forward(self, batch: Batch) -> Tensor:
        """Logits (B, K), float32."""
        start = time.perf_counter()
        with self.autocast():
            logits: Tensor = self.model(batch.images)
        self.spent += time.perf_counter() - start
        return logits.float()

    def learn(self, logits: Tensor, batch: Batch, epoch: int) -> None:
        """One step of gradient descent. Raises `EdgecompressError` naming the step when the loss is
        not finite.
        """
        start = time.perf_counter()
        self._advance()
        value = self.loss(logits, batch)
        number = float(value.detach())
        if not math.isfinite(number):
            whose = f" of {self.name}" if self.name else ""
            where = f"epoch {epoch}, step {self.step}"
            raise EdgecompressError(
                f"loss{whose} is {number} at {where}: lower --learning-rate "
                f"({self.settings.learning_rate:g})"
            )
        self.optimizer.zero_grad()
        value.backward()
        if distributed.size() > 1:
            distributed.sum_gradients_(
                [*self.model.parameters(), *self._beside()], len(batch.labels) / batch.whole
            )
        if self.settings.clip is not None:
            nn.utils.clip_grad_norm_(
                [*self.model.parameters(), *self._beside()], self.settings.clip
            )
        self.optimizer.step()
        self.loss_sum += number * len(batch.labels)
        self.seen += len(batch.labels)
        self.spent += time.perf_counter() - start

    def _advance(self) -> None:
        self.rate = self.settings.learning_rate * factor(
            self.settings.schedule, self.step, self.total, self.settings.warmup
        )
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * group["factor"]
        if self.hooks.on_step is not None:
            self.hooks.on_step(self.step, self.total)
        self.step += 1

    def end_epoch(self, data: DataSet, epoch: int, seconds: float) -> None:
        """Cut where the caller asks for it, validate, and note the epoch."""
        distributed.agree_(self.model)
        train_loss = distributed.summed(self.loss_sum, self.device) / distributed.summed(
            self.seen, self.device
        )
        params = sum(p.numel() for p in self.model.parameters())
        at_cut = self._cut(epoch)
        validation_loss, accuracy = evaluate(self.model, data, data.validation, self.device)
        row = EpochRow(
            epoch, train_loss, validation_loss, accuracy, self.rate, seconds, params, at_cut
        )
        self.rows.append(row)
        if self.hooks.on_epoch is not None:
            self.hooks.on_epoch(row)
        self.best.see(self.model, row, self.hooks.eligible, len(self.cuts))

    def _cut(self, epoch: int) -> int:
        """Shrink the network if the caller asks for it, and carry the optimizer's moments over.
        Returns the channels that went.
        """
        keep = self.hooks.cut(self.model, epoch) if self.hooks.cut is not None else None
        gone = sum(int((~mask).sum()) for mask in keep.values()) if keep else 0
        if not keep or not gone:
            return 0
        small = shrink(self.model, keep).to(self.device)
        if self.hooks.mend is not None:
            self.hooks.mend(self.model, small, keep)
        moved = self.companion.follow(self.model, small, keep) if self.companion is not None else []
        fresh = make_optimizer(small, self.settings, self._beside())
        carry_optimizer(self.optimizer, fresh, self.model, small, keep)
        carry_picked(self.optimizer, fresh, moved)
        self.model, self.optimizer = small, fresh
        self.cuts.append({group.name: mask.cpu() for group, mask in keep.items()})
        return gone

    def out_of_patience(self, epoch: int) -> bool:
        """Has no epoch been better for as long as the caller waits?"""
        patience = self.hooks.patience
        return patience is not None and self.best.epoch > 0 and epoch - self.best.epoch >= patience

    def result(self) -> FitResult:
        """The network of the best epoch, in eval mode, its weights laid out as before the
        training.
        """
        chosen = self.best.restored(self.model)
        for parameter in _parameters_of(chosen, self.settings.frozen) if self._thawed else []:
            parameter.requires_grad_(True)
        chosen.zero_grad(set_to_none=True)
        _lay_out_(chosen, torch.contiguous_format)
        chosen.eval()
        return FitResult(
            tuple(self.rows), self.best.epoch or len(self.rows), chosen, self.best.epoch > 0
        )


def _lay_out_(model: nn.Module, order: torch.memory_format) -> None:
    """Store the weights of 2-D convolutions in another order of memory, in place; their values and
    shapes are the same.
    """
    for parameter in model.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=order)


def _parameters_of(model: nn.Module, names: Sequence[str]) -> list[nn.Parameter]:
    return [parameter for name in names for parameter in model.get_submodule(name).parameters()]


def _autocast(
    precision: str, device: torch.device
) -> Callable[[], contextlib.AbstractContextManager[object]]:
    """The context of a forward pass in `precision` on `device`."""
    able = device.type == "cuda" and torch.cuda.is_bf16_supported()
    if precision == "bf16" or (precision == "auto" and able):
        return lambda: torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext


@contextlib.contextmanager
def dropout_of(model: nn.Module, probability: float | None) -> Iterator[None]:
    """Give every dropout layer of `model` one probability, and its own back afterwards."""
    kinds = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
    own = (
        [(m, m.p) for m in model.modules() if isinstance(m, kinds)]
        if probability is not None
        else []
    )
    for module, _ in own:
        module.p = probability if probability is not None else module.p
    try:
        yield
    finally:
        for module, p in own:
            module.p = p
