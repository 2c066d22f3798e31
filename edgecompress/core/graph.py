"""Channel groups: which channels of a network must stay or go together.

    trace(model, example) -> ChannelGraph

How they are found, in three steps:

1. *Label* (`core/labels`). Every activation is shadowed by a tensor of integer labels of the same
   shape; equal labels mean the same channel. A layer that mixes channels (Linear, Conv) writes
   fresh labels. An operation that moves data (view, cat, chunk, permute, ...) is executed on the
   labels themselves. An elementwise operation couples the labels that meet.
2. *Couple* (`_components`). Labels that are coupled, directly or through others, are one channel.
3. *Group* (`_grouped`). Channels that occupy the same axes of the same layers equally often form
   one group. In a residual network, all convolutions that write one residual stream share a group.

Because coupling is solved label by label, chunks, channel shuffles and flattened maps need no code
of their own.

A channel is *frozen*, with the reason, when its removal would need different source code (a
hard-coded view), or when an operation mixes channels in a way that cannot be cut exactly
(LayerNorm, attention). No weight is read: shapes come from the meta device.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from edgecompress.core import layers, numbers
from edgecompress.core.concrete import concrete_trace, shapes
from edgecompress.core.labels import LabelTracer
from edgecompress.core.ledger import Axis, Ledger
from edgecompress.core.macs import macs_by_module
from edgecompress.core.symbolic import computed_tensors, meta_copy, symbolic_trace
from edgecompress.errors import EdgecompressError, UsageError

__all__ = [
    "ChannelGraph",
    "ChannelGroup",
    "Member",
    "computed_tensors",
    "consumers",
    "meta_copy",
    "symbolic_trace",
    "trace",
]


@dataclass(frozen=True)
class Member:
    """The part of a group that lies in one axis of one layer.

    `index` (C, r) holds, for each of the group's C channels, the r positions it owns on that axis.
    r is 1 except where a channel is spread out, e.g. over the H * W inputs of a Linear behind a
    flatten.
    """

    layer: str
    axis: str
    index: Tensor

    @property
    def writes(self) -> bool:
        """Does the layer write these channels, or have parameters for them?"""
        return self.axis != "in" and not numbers.is_number(self.axis)


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """`size` channels; each one stays or goes in all `members` at once.

    `frozen` is None for a prunable group, else the reason why all its channels must stay.
    """

    name: str
    size: int
    members: tuple[Member, ...]
    frozen: str | None = None

    def __repr__(self) -> str:
        return f"ChannelGroup({self.name!r}, size={self.size}, members={len(self.members)})"


@dataclass(frozen=True)
class ChannelGraph:
    """All channel groups of a model, traced with inputs of `input_shape` (N, C, H, W)."""

    groups: tuple[ChannelGroup, ...]
    frozen: tuple[ChannelGroup, ...]
    input_shape: tuple[int, ...]
    more_inputs: tuple[Tensor, ...] = ()
    """The inputs beside the first, on the meta device."""
    output_shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Output shape of every mixing layer (of its last call) by layer name, with the batch size of
    the example.
    """
    macs: dict[str, int] = field(default_factory=dict)
    """Multiply-accumulates of one sample by module (`core/macs`); their sum is the network's."""
    product_macs: dict[str, float] = field(default_factory=dict)
    """Those of products of activations (attention) that go with one channel of each group, by the
    group's name.
    """
    lines: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """By reason for which something is frozen, the lines of code that call it (`net.py:12`); some
    reasons have none.
    """

    def group(self, name: str) -> ChannelGroup:
        """The prunable group called `name`. Raises `UsageError` naming the known ones."""
        for group in self.groups:
            if group.name == name:
                return group
        raise UsageError(
            f"no prunable group '{name}': there are {', '.join(g.name for g in self.groups)}"
        )


def trace(model: nn.Module, example: Tensor, *more: Tensor) -> ChannelGraph:
    """The channel groups of `model` for inputs like `example` (N, C, H, W) and `more` (N, ...), of
    which only shape and dtype are used.

    A copy of the model is traced in eval mode on the meta device; `model` is neither changed nor
    read. Raises `UsageError` when torch.fx cannot trace it or the example does not fit.
    """
    tracer = LabelTracer(concrete_trace(model, example, *more))
    try:
        tracer.run()
    except EdgecompressError:
        raise
    except Exception as error:
        raise UsageError(
            f"{type(model).__name__} cannot run on an input of shape {shapes([example, *more])}: "
            f"{str(error).splitlines()[0]}"
        ) from error
    return replace(
        _graph(tracer, tuple(example.shape)),
        macs=macs_by_module(model, example, *more),
        more_inputs=tuple(torch.empty_like(one, device="meta") for one in more),
    )


def consumers(model: nn.Module, group: ChannelGroup) -> list[Member]:
    """The members of `group` that are inputs of a mixing layer: what a mask or a gate acts on.

    The input of a convolution that loses whole groups (depthwise included) is not a consumer: it is
    cut together with its output.
    """
    inputs = (member for member in group.members if member.axis == "in")
    return [
        member
        for member in inputs
        if not layers.loses_whole_groups(model.get_submodule(member.layer))
    ]


# -- From labels to groups


_Footprint = tuple[tuple[int, int], ...]
"""The axes on which a channel has positions, as (number of the axis, count of positions)."""


@dataclass(frozen=True)
class _Grouping:
    """Channels sorted into groups. A channel is named by its smallest label."""

    channels: list[list[int]]
    """The channels of each group."""
    reasons: list[str | None]
    """Why each group is frozen, or None."""
    group_of: Tensor
    """Group of each label, (labels,); -1 where the label is no channel's name."""
    rank_of: Tensor
    """Place of each channel within its group, (labels,)."""


def _graph(tracer: LabelTracer, input_shape: tuple[int, ...]) -> ChannelGraph:
    """The `ChannelGraph` of a finished label trace."""
    ledger = tracer.ledger
    channel_of = _components(ledger.edges, ledger.count)
    channels_along = {axis: channel_of[labels] for axis, labels in ledger.recorded.items()}

    grouping = _grouped(
        _footprints(channels_along), _reasons(ledger.freezes, channel_of), channel_of
    )
    groups = _named(grouping, _members(grouping, channels_along))

    return ChannelGraph(
        tuple(group for group in groups if group.frozen is None),
        tuple(group for group in groups if group.frozen is not None),
        input_shape,
        output_shapes=dict(tracer.output_shapes),
        product_macs=_product_macs(ledger, channel_of, grouping, groups, input_shape[0]),
        lines=_lines(ledger, channel_of, grouping),
    )


def _lines(ledger: Ledger, channel_of: Tensor, grouping: _Grouping) -> dict[str, tuple[str, ...]]:
    """By reason the lines of code whose calls hold a group for it."""
    lines: dict[str, dict[str, None]] = defaultdict(dict)
    for labels, reason, line in ledger.called:
        groups = grouping.group_of[channel_of[labels]].unique().tolist()
        if any(number >= 0 and grouping.reasons[number] == reason for number in groups):
            lines[reason][line] = None
    return {reason: tuple(code_lines) for reason, code_lines in lines.items()}


def _product_macs(
    ledger: Ledger,
    channel_of: Tensor,
    grouping: _Grouping,
    groups: list[ChannelGroup],
    batch: int,
) -> dict[str, float]:
    """MACs of products of activations for one sample and one channel of each group."""
    totals: dict[str, float] = defaultdict(float)
    for labels, macs in ledger.products:
        for number in grouping.group_of[channel_of[labels]].tolist():
            if number >= 0:
                totals[groups[number].name] += macs / batch
    sizes = {group.name: group.size for group in groups}
    return {name: total / sizes[name] for name, total in totals.items()}


def _components(edges: list[Tensor], count: int) -> Tensor:
    """For each of `count` labels the smallest label that it is coupled to, (count,).

    `edges` are pairs of coupled labels, (n, 2) each. Connected components by pointer jumping: all
    pairs at once pull both sides to the smaller root, then every label jumps to its root's root.
    """
    root = torch.arange(count)
    if not edges:
        return root
    pairs = torch.unique(torch.cat(edges), dim=0)
    while True:
        left, right = root[pairs[:, 0]], root[pairs[:, 1]]
        smaller = torch.minimum(left, right)
        lowered = root.clone()
        lowered.scatter_reduce_(0, left, smaller, "amin")
        lowered.scatter_reduce_(0, right, smaller, "amin")
        lowered = lowered[lowered]
        if torch.equal(lowered, root):
            return root
        root = lowered


def _footprints(channels_along: dict[Axis, Tensor]) -> dict[int, _Footprint]:
    """For each channel the axes that it occupies, and with how many positions."""
    footprints: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for number, channels in enumerate(channels_along.values()):
        values, counts = channels.unique(return_counts=True)
        for channel, count in zip(values.tolist(), counts.tolist(), strict=True):
            footprints[channel].append((number, count))
    return {channel: tuple(footprint) for channel, footprint in footprints.items()}


def _reasons(freezes: list[tuple[Tensor, str]], channel_of: Tensor) -> dict[int, str]:
    """For each frozen channel the first reason that was given for it. That it meets an anonymous
    value (the first entry) is the last: such a value comes from an operation that says more.
    """
    reasons: dict[int, str] = {}
    for labels, reason in (*freezes[1:], *freezes[:1]):
        for channel in channel_of[labels].unique().tolist():
            reasons.setdefault(channel, reason)
    return reasons


def _grouped(
    footprints: dict[int, _Footprint], reasons: dict[int, str], channel_of: Tensor
) -> _Grouping:
    """Channels with the same footprint and the same reason to be frozen form one group."""
    by_signature: dict[tuple[_Footprint, str | None], list[int]] = defaultdict(list)
    for channel, footprint in footprints.items():
        by_signature[(footprint, reasons.get(channel))].append(channel)

    group_of = torch.full_like(channel_of, -1)
    rank_of = torch.zeros_like(channel_of)
    for number, channels in enumerate(by_signature.values()):
        # labels are numbered in the order of the forward pass, so sorting keeps the layer's order
        ordered = torch.tensor(channels).sort().values
        group_of[ordered] = number
        rank_of[ordered] = torch.arange(len(channels))

    reasons_of = [reason for _, reason in by_signature]
    return _Grouping(list(by_signature.values()), reasons_of, group_of, rank_of)


def _members(grouping: _Grouping, channels_along: dict[Axis, Tensor]) -> list[list[Member]]:
    """For each group its part in every axis, with the positions in the order of its channels."""
    members: list[list[Member]] = [[] for _ in grouping.channels]
    for (layer, axis), channels in channels_along.items():
        group = grouping.group_of[channels]
        rank = grouping.rank_of[channels]
        for number in group.unique().tolist():
            positions = (group == number).nonzero()[:, 0]
            in_order = positions[rank[positions].argsort(stable=True)]
            size = len(grouping.channels[number])
            members[number].append(Member(layer, axis, in_order.reshape(size, -1)))
    return members


def _named(grouping: _Grouping, members: list[list[Member]]) -> list[ChannelGroup]:
    """The groups, each named after the first layer that writes it; further ones get `:2`, `:3`."""
    groups = []
    uses: dict[str, int] = defaultdict(int)
    for channels, reason, parts in zip(grouping.channels, grouping.reasons, members, strict=True):
        layer = next((member.layer for member in parts if member.writes), "input")
        uses[layer] += 1
        name = layer if uses[layer] == 1 else f"{layer}:{uses[layer]}"
        groups.append(ChannelGroup(name, len(channels), tuple(parts), reason))
    return groups
