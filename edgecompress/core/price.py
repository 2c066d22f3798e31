"""What a network costs as a function of how many channels each group keeps.

The widths of all layers are linear in the numbers of kept channels, and the cost of a layer is
bilinear in its two widths. So price and gradient of any choice follow from a few matrix products,
without building the network.

Vectors: `kept` (G,) has the channels left in each of the G prunable groups; widths (L,) are those
of the L mixing layers. All are float64.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from edgecompress.core import layers
from edgecompress.core.graph import ChannelGraph


@dataclass(frozen=True)
class Price:
    """What a network costs in some unit, as a function of the widths that are left.

    A mixing layer costs `per_weight[layer]` for each of its weights and `per_output[layer]` for
    each output channel; a channelwise layer costs `per_channel[layer]` for each channel; a group
    costs `per_group[group]` for each channel; `fixed` comes on top.
    """

    per_weight: Mapping[str, float]
    per_output: Mapping[str, float]
    fixed: float = 0.0
    per_channel: Mapping[str, float] = field(default_factory=dict)
    per_group: Mapping[str, float] = field(default_factory=dict)


class Widths:
    """Widths of all mixing layers as linear functions of the channels kept in each group.

    For axis `"in"` and `"out"`:

    groups        names of the G prunable groups
    rows[axis]    (G, L)   positions that one channel of each group owns on that axis of each layer
    full[axis]    (L,)     widths of the network that is not pruned
    fixed[axis]   (L,)     positions that belong to no prunable group
    through       (G,) for each channelwise layer: positions that one channel of each group owns
    whole         (L,)     is the layer a convolution that loses whole groups?
    unit          (L,)     weights for one (input, output) pair; for one output where `whole`
    """

    def __init__(self, model: nn.Module, graph: ChannelGraph) -> None:
        self.layers = [name for name, module in model.named_modules() if layers.is_mixing(module)]
        modules = [model.get_submodule(name) for name in self.layers]
        self.groups = [group.name for group in graph.groups]
        sizes = full_widths(graph)

        self.rows = {axis: _owned(graph, self.layers, axis) for axis in ("in", "out")}
        self.full = {
            axis: _vector([layers.axis_size(module, axis) for module in modules])
            for axis in ("in", "out")
        }
        self.fixed = {axis: self.full[axis] - sizes @ self.rows[axis] for axis in ("in", "out")}

        channelwise = _channelwise(graph)
        through = _owned(graph, channelwise, "through")
        self.through = {name: through[:, place] for place, name in enumerate(channelwise)}
        self.whole = torch.tensor([layers.loses_whole_groups(module) for module in modules])
        self.unit = _vector([layers.unit_weights(module) for module in modules])

    def at(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs (L,) and outputs (L,) of every layer when `kept` (G,) channels are left."""
        inputs = kept @ self.rows["in"] + self.fixed["in"]
        outputs = kept @ self.rows["out"] + self.fixed["out"]
        return inputs, outputs


def _channelwise(graph: ChannelGraph) -> list[str]:
    """Names of the channelwise layers that prunable groups pass through, each once."""
    members = [member for group in graph.groups for member in group.members]
    return list(dict.fromkeys(member.layer for member in members if member.axis == "through"))


def _owned(graph: ChannelGraph, names: list[str], axis: str) -> Tensor:
    """(G, layers): positions that one channel of each group owns on `axis` of each layer."""
    column = {name: number for number, name in enumerate(names)}
    owned = torch.zeros((len(graph.groups), len(names)), dtype=torch.float64)
    for row, group in enumerate(graph.groups):
        for member in group.members:
            if member.axis == axis and member.layer in column:
                owned[row, column[member.layer]] += member.index.shape[1]
    return owned


def _vector(values: list[int] | list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


class Pricer:
    """Evaluates a `Price` and its gradient."""

    def __init__(self, widths: Widths, price: Price) -> None:
        self.widths = widths
        self.per_weight = _vector([price.per_weight.get(name, 0.0) for name in widths.layers])
        self.per_output = _vector([price.per_output.get(name, 0.0) for name in widths.layers])
        self.per_group = _vector([price.per_group.get(name, 0.0) for name in widths.groups])
        for name, cost in price.per_channel.items():
            if name in widths.through:
                self.per_group += cost * widths.through[name]
        self.fixed = price.fixed

    def cost(self, kept: Tensor) -> float:
        """The price of the network with `kept` (G,) channels left in each group."""
        inputs, outputs = self.widths.at(kept)
        weights = self.widths.unit * outputs * self._inputs_that_count(inputs)
        mixing = (self.per_weight * weights + self.per_output * outputs).sum()
        return float(mixing + self.per_group @ kept) + self.fixed

    def gradient(self, kept: Tensor) -> Tensor:
        """Price of one more channel in each group, (G,), with `kept` (G,) channels left."""
        inputs, outputs = self.widths.at(kept)
        per_pair = self.per_weight * self.widths.unit
        per_output = per_pair * self._inputs_that_count(inputs) + self.per_output
        per_input = per_pair * torch.where(self.widths.whole, torch.zeros_like(outputs), outputs)
        rows = self.widths.rows
        return rows["out"] @ per_output + rows["in"] @ per_input + self.per_group

    def _inputs_that_count(self, inputs: Tensor) -> Tensor:
        """`inputs` (L,), but 1 where whole groups go: there each output reads a fixed number of
        inputs, which is part of `unit`.
        """
        return torch.where(self.widths.whole, torch.ones_like(inputs), inputs)


def pricer(model: nn.Module, graph: ChannelGraph, price: Price) -> Pricer:
    """A `Pricer` for `price` on the groups of `graph`, the trace of `model`."""
    return Pricer(Widths(model, graph), price)


def full_widths(graph: ChannelGraph) -> Tensor:
    """Channels of every prunable group, (G,), float64: the `kept` of a network that is not
    pruned.
    """
    return _vector([group.size for group in graph.groups])
