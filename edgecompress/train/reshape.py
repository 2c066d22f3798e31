"""Carry an optimizer over a cut: its moments are sliced with the weights that they belong to, not
lost.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from edgecompress.core.shrink import Keep, shrink


def carry_optimizer(
    optimizer: torch.optim.Optimizer,
    fresh: torch.optim.Optimizer,
    model: nn.Module,
    small: nn.Module,
    keep: Keep,
) -> None:
    """Fill `fresh`, an optimizer over the parameters of `small`, with the state that `optimizer`
    holds for those of `model`. In place.

    `small` is `shrink(model, keep)`. State tensors of a parameter's shape (moments) are cut as the
    parameter was; others (step counts) are copied. A parameter without state (not stepped yet) has
    none afterwards.
    """
    old, new = dict(model.named_parameters()), dict(small.named_parameters())
    held = {name: optimizer.state[p] for name, p in old.items() if p in optimizer.state}
    for key in sorted({key for state in held.values() for key in state}):
        moments = {
            n: s[key]
            for n, s in held.items()
            if isinstance(s.get(key), Tensor) and s[key].shape == old[n].shape
        }
        cut = dict(shrink(_holding(model, moments), keep).named_parameters())
        for name, state in held.items():
            if key in state:
                whole = state[key]
                value = (
                    cut[name].detach()
                    if name in moments
                    else whole.clone()
                    if isinstance(whole, Tensor)
                    else copy.copy(whole)
                )
                fresh.state[new[name]][key] = value


def _holding(model: nn.Module, values: dict[str, Tensor]) -> nn.Module:
    """A copy of `model` whose parameters hold `values` (each of its parameter's shape) instead of
    weights.
    """
    memo: dict[int, object] = {
        id(p): nn.Parameter(values.get(n, p).detach(), False) for n, p in model.named_parameters()
    }
    return copy.deepcopy(model, memo)


def carry_picked(
    optimizer: torch.optim.Optimizer,
    fresh: torch.optim.Optimizer,
    moved: Iterable[tuple[nn.Parameter, nn.Parameter, Callable[[Tensor], Tensor]]],
) -> None:
    """Fill `fresh` with the state of single parameters: (old one, new one, how a moment of the old
    becomes the new's). In place.
    """
    for old, new, pick in moved:
        for key, value in optimizer.state.get(old, {}).items():
            is_moment = isinstance(value, Tensor) and value.shape == old.shape
            fresh.state[new][key] = pick(value) if is_moment else copy.deepcopy(value)
