"""Many small networks of one class, trained at once: their weights are stacked in one tensor per
parameter, and a step is one batched operation for all.

Each network has its own initial weights, its own order of samples and, optionally, its own targets.
The result is that of training them one after the other, up to rounding: the update (SGD with
momentum) is elementwise, so networks do not interact.
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
from edgecompress.train.optimizers import set_rate_, split_by_prefix

Penalty = Callable[[Mapping[str, Tensor], int], Tensor]
"""(parameters (M, ...) by name, epoch from 1) -> addend (M,) of each network's loss."""


@dataclass(frozen=True)
class ManySettings:
    """SGD with `momentum`. `rate(epoch)` is the learning rate of an epoch (from 1); parameters
    whose name begins with a prefix in `faster` have a multiple of it.
    """

    epochs: int
    rate: Callable[[int], float]
    batch_size: int = 32
    momentum: float = 0.9
    faster: tuple[tuple[str, float], ...] = ()


def mean_square(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean square error (M,) of each network, from outputs and targets (M, B, K)."""
    return (outputs - targets).square().flatten(1).mean(1)


class Stacked:
    """M networks as one: `parameters` holds a tensor (M, ...) for each name.

    Raises `UsageError` for networks with buffers (BatchNorm).
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
        self._skeleton = copy.deepcopy(models[0]).to("meta")

    def __len__(self) -> int:
        return len(self.models)

    def __call__(self, x: Tensor, *, shared: bool = False, training: bool = False) -> Tensor:
        """Outputs (M, B, K) for inputs (M, B, ...), or (B, ...) that all networks read if
        `shared`.
        """
        self._skeleton.train(training)

        def one(parameters: dict[str, Tensor], inputs: Tensor) -> Tensor:
            output: Tensor = functional_call(self._skeleton, parameters, (inputs,))
            return output

        mapped = vmap(one, in_dims=(0, None if shared else 0), randomness="different")
        return mapped(self.parameters, x)

    def unstacked(self) -> list[nn.Module]:
        """The networks given at construction, in eval mode, overwritten with the trained
        weights.
        """
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
    """Train `models` on inputs `x` (N, ...) and targets `y` (N, K), or (M, N, K) if each network
    has its own, by least squares.

    `seeds` (M of them) decide each network's order of samples. The networks are changed and
    returned. Raises `EdgecompressError` naming the network and the epoch when a loss is not finite.
    """
    torch.manual_seed(seeds[0])
    stacked = Stacked(models)
    optimizer = _optimizer(stacked, settings)
    for epoch in range(1, settings.epochs + 1):
        set_rate_(optimizer, settings.rate(epoch))
        places = torch.stack([order(len(x), seed, epoch) for seed in seeds])  # (M, N)
        losses = torch.zeros(len(models))
        for ids in places.split(settings.batch_size, dim=1):  # (M, B)
            losses = mean_square(stacked(x[ids], training=True), _targets(y, ids))  # (M,)
            if penalty is not None:
                losses = losses + penalty(stacked.parameters, epoch)
            optimizer.zero_grad()
            losses.sum().backward()
            optimizer.step()
        _check_finite(losses.detach(), epoch)
        if on_epoch is not None:
            on_epoch(epoch)
    return stacked.unstacked()


def _targets(y: Tensor, ids: Tensor) -> Tensor:
    """The targets (M, B, K) at `ids` (M, B), from `y` (N, K) or (M, N, K)."""
    if y.dim() == 3:
        return y[torch.arange(len(ids))[:, None], ids]
    return y[ids]


def _check_finite(losses: Tensor, epoch: int) -> None:
    """Raises `EdgecompressError` naming the first network whose loss, in (M,), is not finite."""
    wrong = (~torch.isfinite(losses)).nonzero()
    if len(wrong):
        raise EdgecompressError(
            f"loss of network {int(wrong[0])} is not finite after epoch {epoch}: lower the "
            "learning rate"
        )


def _optimizer(stacked: Stacked, settings: ManySettings) -> torch.optim.Optimizer:
    rest, faster = split_by_prefix(stacked.parameters, settings.faster)
    groups = [(1.0, rest), *faster]
    return torch.optim.SGD(
        [{"params": parameters, "factor": factor} for factor, parameters in groups],
        lr=settings.rate(1),
        momentum=settings.momentum,
        foreach=True,
    )


@torch.no_grad()
def losses_of(models: Sequence[nn.Module], x: Tensor, y: Tensor) -> Tensor:
    """Mean square error (M,) of each network on inputs `x` (N, ...) and targets `y` (N, K)."""
    outputs = Stacked(models)(x, shared=True)  # (M, N, K)
    return mean_square(outputs, y.expand(len(models), *y.shape))
