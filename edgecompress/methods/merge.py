"""Baselines of merging: the mean of several networks' weights, as they are or with their channels
matched first.

Weight matching is that of Git Re-Basin (Ainsworth et al. 2023, section 3.2), on channel groups: the
channels of a group are permuted in all layers that hold them, so that each network computes the
same function as before, and its weights lie closer to those of the first one.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from edgecompress.core import ChannelGraph, ChannelGroup, layers
from edgecompress.core.layers import Resized
from edgecompress.core.shrink import find, rebuilt

Permutations = Mapping[ChannelGroup, Tensor]
"""For each group (C,) int64: which of its channels comes first, second, ..."""
ROUNDS = 20
"""Passes over all groups, at most."""
GAIN = 1e-9
"""A permutation must raise the similarity by more than this."""


def averaged(models: Sequence[nn.Module]) -> nn.Module:
    """The network whose floating-point tensors are the means of those of `models`, including
    BatchNorm's statistics.
    """
    states = [model.state_dict() for model in models]
    mean = {
        name: torch.stack([state[name].double() for state in states]).mean(0).to(value)
        if value.is_floating_point()
        else value
        for name, value in states[0].items()
    }
    average = copy.deepcopy(models[0])
    average.load_state_dict(mean)
    return average


def movable(model: nn.Module, group: ChannelGroup) -> bool:
    """Can the channels of `group` change places? They cannot where a grouped convolution that is
    not depthwise reads or writes them.
    """
    return not any(_is_grouped(find(model, member.layer)) for member in group.members)


def _is_grouped(layer: nn.Module | Tensor) -> bool:
    """Is `layer` a convolution with groups of more than one channel?"""
    groups = getattr(layer, "groups", 1)
    if not isinstance(layer, nn.Module) or groups == 1:
        return False
    return not groups == layers.axis_size(layer, "in") == layers.axis_size(layer, "out")


def permuted(model: nn.Module, order: Permutations) -> nn.Module:
    """A copy of `model` with the channels of groups in another order: the same function."""
    orders: dict[str, dict[str, Tensor]] = {}
    for group, places in order.items():
        for member in group.members:
            axes = orders.setdefault(member.layer, {})
            if member.axis not in axes:
                axes[member.axis] = torch.arange(_size(find(model, member.layer), member.axis))
            axes[member.axis][member.index.reshape(-1)] = member.index[places].reshape(-1)
    changed = {name: layers.reordered(find(model, name), axes) for name, axes in orders.items()}
    return rebuilt(model, {name: Resized(tensors, {}) for name, tensors in changed.items()})


def _size(layer: nn.Module | Tensor, axis: str) -> int:
    """Length of `axis`; that of a tensor is `dim` and its number."""
    if isinstance(layer, Tensor):
        return layer.shape[int(axis.removeprefix("dim"))]
    return layers.axis_size(layer, axis)


def similarity(first: nn.Module, second: nn.Module, group: ChannelGroup) -> Tensor:
    """Inner products (C, C) float64 of all weights that produce or read a channel of `group`: row i
    is channel i of `first`, column j channel j of `second`.
    """
    total = torch.zeros(group.size, group.size, dtype=torch.float64)
    for member in group.members:
        left, right = find(first, member.layer), find(second, member.layer)
        if isinstance(left, Tensor) or isinstance(right, Tensor) or not layers.is_mixing(left):
            continue
        slices = zip(
            layers.axis_slices(left, member.axis),
            layers.axis_slices(right, member.axis),
            strict=True,
        )
        for (name, ours), (_, theirs) in slices:
            if name == "weight":
                rows = ours.detach()[member.index].flatten(1).double()  # (C, weights)
                columns = theirs.detach()[member.index].flatten(1).double()
                total += rows @ columns.T
    return total


def matched(first: nn.Module, second: nn.Module, graph: ChannelGraph) -> nn.Module:
    """`second` with its channels in the order in which its weights lie closest to those of `first`:
    the same function. One group after the other is assigned, until none changes or for `ROUNDS`.
    """
    groups = [group for group in graph.groups if movable(second, group)]
    for _ in range(ROUNDS):
        changed = False
        for group in groups:
            order = _better_order(similarity(first, second, group))
            if order is not None:
                second = permuted(second, {group: order})
                changed = True
        if not changed:
            break
    return second


def _better_order(values: Tensor) -> Tensor | None:
    """The order (C,) of the columns that maximises the diagonal of the similarities `values`
    (C, C); None if the present one is as good.
    """
    rows, columns = linear_sum_assignment(values.numpy(), maximize=True)
    order = torch.as_tensor(columns)
    best = float(values[torch.as_tensor(rows), order].sum())
    return order if best > float(values.diagonal().sum()) + GAIN else None
