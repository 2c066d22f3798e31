"""Many small networks of one kind, trained at once: their weights stand in one tensor, and a step
is one batched operation for all.

Each network has its own initial weights, its own order of samples and, where asked, its own
targets; the result is that of training them one after the other, to the rounding of floats. The
update is elementwise (SGD with momentum), so networks do not meet.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from edgecompress.errors import EdgecompressError, UsageError
from edgecompress.train.batches import order

Penalty = Callable[[Mapping[str, Tensor], int], Tensor]
"""(parameters (M, ...) by name, epoch from 1) -> what is added to each network's loss, (M,)."""


@dataclass(frozen=True)
class ManySettings:
    """SGD with `momentum`; `rate(epoch)` is the learning rate of an epoch (from 1), times its
    factor for parameters in `faster`.
    """

    epochs: int
    rate: Callable[[int], float]
    batch_size: int = 32
    momentum: float = 0.9
    faster: tuple[tuple[str, float], ...] = ()


def mean_square(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean square error of each network, (M,), from outputs and targets (M, B, K)."""
    return (outputs - targets).square().flatten(1).mean(1)


class Stacked:
    """M networks as one: `parameters` holds for each name a tensor (M, ...). Raises `UsageError`
    for networks with buffers (BatchNorm).
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        if any(True for _ in models[0].buffers()):
            raise UsageError(
                f"{type(models[0]).__name__} has BatchNorm or other buffers: train its "
                "copies one at a time"
            )
        values, _ = stack_module_state(list(models))
        self.models = list(models)
        self.parameters = {
            name: value.detach().clone().requires_grad_() for name, value in values.items()
        }
        self._shape = copy.deepcopy(models[0]).to("meta")

    def __len__(self) -> int:
        return len(self.models)

    def __call__(self, x: Tensor, *, shared: bool = False, training: bool = False) -> Tensor:
        """Outputs (M, B, K) for inputs (M, B, ...), or (B, ...) that all networks read where
        `shared`.
        """
        self._shape.train(training)

        def one(parameters: dict[str, Tensor], inputs: Tensor) -> Tensor:
            output: Tensor = functional_call(self._shape, parameters, (inputs,))
            return output

        mapped = vmap(one, in_dims=(0, None if shared else 0), randomness="different")
        return mapped(self.parameters, x)

    def unstacked(self) -> list[nn.Module]:
        """The networks, with what they learned, in eval mode; the ones given are changed."""
        with torch.no_grad():
            for place, model in enumerate(self.models):
                for name, parameter in model.named_parameters():
                    parameter.copy_(self.parameters[name][place])
                model.eval()
        return self.models


def train_many(
    models: Sequence[nn.Module],
    x: Tensor,
    y: Tensor,
    settings: ManySettings,
    *,
    seeds: Sequence[int],
    penalty: Penalty | None = None,
    on_epoch: Callable[[int], None] | None = None,
) -> list[nn.Module]:
    """Train `models` on inputs (N, ...) and targets (N, K), or (M, N, K) for targets of each
    network's own, to least square error.

    `seeds` give each network its order of samples. The networks are changed and returned. Raises
    `EdgecompressError` naming the network and the epoch when a loss is not finite.
    """
    torch.manual_seed(seeds[0])
    stacked = Stacked(models)
    optimizer = _optimizer(stacked, settings)
    own = y.dim() == 3
    rows = torch.arange(len(models))[:, None]
    for epoch in range(1, settings.epochs + 1):
        for group in optimizer.param_groups:
            group["lr"] = settings.rate(epoch) * group["factor"]
        places = torch.stack([order(len(x), seed, epoch) for seed in seeds])  # (M, N)
        last = torch.zeros(len(models))
        for ids in places.split(settings.batch_size, dim=1):
            targets = y[rows, ids] if own else y[ids]
            losses = mean_square(stacked(x[ids], training=True), targets)
            if penalty is not None:
                losses = losses + penalty(stacked.parameters, epoch)
            optimizer.zero_grad()
            losses.sum().backward()
            optimizer.step()
            last = losses.detach()
        if not bool(torch.isfinite(last).all()):
            wrong = int((~torch.isfinite(last)).nonzero()[0])
            raise EdgecompressError(
                f"loss of network {wrong} is not finite after epoch {epoch}: lower the "
                "learning rate"
            )
        if on_epoch is not None:
            on_epoch(epoch)
    return stacked.unstacked()


def _optimizer(stacked: Stacked, settings: ManySettings) -> torch.optim.Optimizer:
    groups, taken = [], set[str]()
    for prefix, factor in settings.faster:
        names = [name for name in stacked.parameters if name.startswith(prefix)]
        taken |= set(names)
        groups.append({"params": [stacked.parameters[name] for name in names], "factor": factor})
    rest = [value for name, value in stacked.parameters.items() if name not in taken]
    return torch.optim.SGD(
        [{"params": rest, "factor": 1.0}, *groups],
        lr=settings.rate(1),
        momentum=settings.momentum,
        foreach=True,
    )


@torch.no_grad()
def losses_of(models: Sequence[nn.Module], x: Tensor, y: Tensor) -> Tensor:
    """Mean square error (M,) of each network on inputs (N, ...) and targets (N, K)."""
    outputs = Stacked(models)(x, shared=True)
    return mean_square(outputs, y.expand(len(models), *y.shape))
