"""Carry an optimizer over a cut: its moments are sliced as the weights that they belong to."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

from torch import Tensor, nn
from torch.optim import Optimizer

from edgecompress.core.shrink import Keep, shrink
from edgecompress.train.companion import Moved


def carry_optimizer(
    optimizer: Optimizer, fresh: Optimizer, model: nn.Module, small: nn.Module, keep: Keep
) -> None:
    """Fill `fresh`, an optimizer over the parameters of `small`, with the state that `optimizer`
    holds for those of `model`, in place.

    `small` is `shrink(model, keep)`. State tensors of a parameter's shape (moments) are cut as the
    parameter was; everything else (step counts) is copied. A parameter that has not been stepped
    has no state before or after.
    """
    old = dict(model.named_parameters())
    new = dict(small.named_parameters())
    states = {name: optimizer.state[p] for name, p in old.items() if p in optimizer.state}
    for key in sorted({key for state in states.values() for key in state}):
        moments = {
            name: state[key]
            for name, state in states.items()
            if key in state and _is_moment(state[key], old[name])
        }
        cut = _cut(moments, model, keep) if moments else {}
        for name, state in states.items():
            if key in state:
                fresh.state[new[name]][key] = cut[name] if name in cut else _copied(state[key])


def carry_picked(optimizer: Optimizer, fresh: Optimizer, moved: Iterable[Moved]) -> None:
    """Fill `fresh` with the state of single parameters that `moved` lists, in place."""
    for old, new, pick in moved:
        for key, value in optimizer.state.get(old, {}).items():
            fresh.state[new][key] = pick(value) if _is_moment(value, old) else _copied(value)


def _is_moment(value: object, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == parameter.shape


def _cut(moments: Mapping[str, Tensor], model: nn.Module, keep: Keep) -> dict[str, Tensor]:
    """`moments`, each of the shape of the parameter of `model` with its name, cut to `keep`."""
    small = shrink(_holding(model, moments), keep)
    return {name: p.detach() for name, p in small.named_parameters() if name in moments}


def _holding(model: nn.Module, values: Mapping[str, Tensor]) -> nn.Module:
    """A copy of `model` in which `values` replace the parameters of their names."""
    memo: dict[int, object] = {
        id(p): nn.Parameter(values.get(name, p).detach(), False)
        for name, p in model.named_parameters()
    }
    return copy.deepcopy(model, memo)


def _copied(value: object) -> object:
    return value.clone() if isinstance(value, Tensor) else copy.copy(value)
