"""Baselines of merging: the mean of several networks' weights, as they are or with their channels
matched first.

Weight matching is that of Git Re-Basin (Ainsworth et al. 2023, section 3.2), on channel groups: the
channels of a group are permuted in all layers that hold them, so that each network computes the
same as before, and its weights lie closer to the first one's.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from edgecompress.core import ChannelGraph, ChannelGroup, layers
from edgecompress.core.layers import Cut
from edgecompress.core.shrink import find, rebuilt

Permutations = Mapping[ChannelGroup, Tensor]
"""For each group (C,) which of its channels comes first, second, ..."""
ROUNDS = 20


def averaged(models: Sequence[nn.Module]) -> nn.Module:
    """The network whose every floating tensor is the mean of those of `models`, BatchNorm's
    statistics too.
    """
    states = [model.state_dict() for model in models]
    result = copy.deepcopy(models[0])
    mean = {
        name: torch.stack([state[name].double() for state in states]).mean(0).to(value)
        if value.is_floating_point()
        else value
        for name, value in states[0].items()
    }
    result.load_state_dict(mean)
    return result


def movable(model: nn.Module, group: ChannelGroup) -> bool:
    """Can the channels of `group` change places? Not where a convolution with wide groups reads or
    writes them.
    """
    for member in group.members:
        layer = find(model, member.layer)
        groups = int(getattr(layer, "groups", 1)) if isinstance(layer, nn.Module) else 1
        if groups > 1 and not (
            isinstance(layer, nn.Module)
            and groups == layers.axis_size(layer, "in") == layers.axis_size(layer, "out")
        ):
            return False
    return True


def permuted(model: nn.Module, order: Permutations) -> nn.Module:
    """`model` with the channels of groups in another order: it computes the same."""
    orders: dict[str, dict[str, Tensor]] = {}
    for group, places in order.items():
        for member in group.members:
            layer = find(model, member.layer)
            size = (
                layer.shape[int(member.axis[3:])]
                if isinstance(layer, Tensor)
                else layers.axis_size(layer, member.axis)
            )
            known = orders.setdefault(member.layer, {}).setdefault(member.axis, torch.arange(size))
            known[member.index.reshape(-1)] = member.index[places].reshape(-1)
    changed = {name: layers.reordered(find(model, name), axes) for name, axes in orders.items()}
    return rebuilt(model, {name: Cut(tensors, {}) for name, tensors in changed.items()})


def similarity(first: nn.Module, other: nn.Module, group: ChannelGroup) -> Tensor:
    """Inner products (C, C) of all weights that make or read a channel: row a channel of `first`,
    column one of `other`; float64.
    """
    total = torch.zeros(group.size, group.size, dtype=torch.float64)
    for member in group.members:
        one, two = find(first, member.layer), find(other, member.layer)
        if isinstance(one, Tensor) or isinstance(two, Tensor) or not layers.is_mixing(one):
            continue
        for (name, left), (_, right) in zip(
            layers.axis_slices(one, member.axis), layers.axis_slices(two, member.axis), strict=True
        ):
            if name == "weight":
                rows, columns = (
                    t.detach()[member.index].flatten(1).double() for t in (left, right)
                )
                total += rows @ columns.T
    return total


def matched(first: nn.Module, other: nn.Module, graph: ChannelGraph) -> nn.Module:
    """`other` with its channels in the order in which its weights lie closest to those of `first`:
    the same function.
    """
    groups = [group for group in graph.groups if movable(other, group)]
    for _ in range(ROUNDS):
        changed = False
        for group in groups:
            values = similarity(first, other, group)
            _, columns = linear_sum_assignment(values.numpy(), maximize=True)
            order = torch.as_tensor(columns)
            if (
                float(values[torch.arange(group.size), order].sum())
                > float(values.diagonal().sum()) + 1e-9
            ):
                other, changed = permuted(other, {group: order}), True
        if not changed:
            break
    return other
