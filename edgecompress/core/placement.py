"""Where the positions of several networks of one kind go in the wide network that holds them all.

A group of C channels that grows has N * C in the wide network: those of the first network, then
those of the second, ... A group that does not grow (the input; the output when it is averaged) is
shared.

On an axis with one group this fixes every place. On an axis with several (a concat, a residual
stream with more than one width) the order is that of the wide network's own trace. So there are two
placements: `provisional` gives a wide network of the right shapes, whose trace gives the `final`
one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edgecompress.core.graph import ChannelGraph, ChannelGroup, Member
from edgecompress.core.ledger import Axis

Placement = dict[Axis, list[Tensor]]
"""For each axis of each layer and each network the places (size of the axis,) of its positions."""

UNPLACED = -1


@dataclass(frozen=True)
class _Extent:
    """One axis of one network: its `size`, and which of its positions grow, (size,) bool."""

    size: int
    grows: Tensor

    def wide_size(self, count: int) -> int:
        """Size of the axis in the wide network of `count` networks."""
        growing = int(self.grows.sum())
        return self.size + (count - 1) * growing


def _extents(graph: ChannelGraph, grown: Sequence[ChannelGroup]) -> dict[Axis, _Extent]:
    positions: dict[Axis, list[Tensor]] = {}
    growing: dict[Axis, list[Tensor]] = {}
    for group in (*graph.groups, *graph.frozen):
        for member in group.members:
            axis = (member.layer, member.axis)
            positions.setdefault(axis, []).append(member.index.reshape(-1))
            if group in grown:
                growing.setdefault(axis, []).append(member.index.reshape(-1))

    extents = {}
    for axis, parts in positions.items():
        size = int(torch.cat(parts).max()) + 1
        grows = torch.zeros(size, dtype=torch.bool)
        if axis in growing:
            grows[torch.cat(growing[axis])] = True
        extents[axis] = _Extent(size, grows)
    return extents


def provisional(count: int, graph: ChannelGraph, grown: Sequence[ChannelGroup]) -> Placement:
    """A placement that is right in its shapes: on each axis the shared positions first, then those
    of each network that grow.
    """
    placement: Placement = {}
    for axis, extent in _extents(graph, grown).items():
        growing = int(extent.grows.sum())
        shared = extent.size - growing
        layout = []
        for number in range(count):
            places = torch.empty(extent.size, dtype=torch.long)
            places[~extent.grows] = torch.arange(shared)
            places[extent.grows] = shared + number * growing + torch.arange(growing)
            layout.append(places)
        placement[axis] = layout
    return placement


def final(
    count: int, graph: ChannelGraph, grown: Sequence[ChannelGroup], wide: ChannelGraph
) -> Placement:
    """The placement by which `wide`, the trace of the wide network, computes what the `count`
    networks with trace `graph` compute: channel c of network m is channel m * C + c of the wide
    group.

    Where the wide network counts channels differently (a grouped convolution that is narrowed in
    one and loses whole groups in the other), the networks' positions on an axis follow one another.
    """
    extents = _extents(graph, grown)
    placement: Placement = {
        axis: [torch.full((extent.size,), UNPLACED) for _ in range(count)]
        for axis, extent in extents.items()
    }
    wide_groups = {group.name: group for group in (*wide.groups, *wide.frozen)}
    for group in (*graph.groups, *graph.frozen):
        times = count if group in grown else 1
        twin = wide_groups.get(group.name)
        if twin is not None and twin.size == times * group.size:
            _place_group(placement, group, twin, times)

    return {
        axis: _completed(layout, extents[axis].wide_size(count))
        for axis, layout in placement.items()
    }


def _place_group(placement: Placement, group: ChannelGroup, twin: ChannelGroup, times: int) -> None:
    """Enter into `placement` the places of `group`'s positions, as its wide `twin` has them."""
    for member in group.members:
        for wide_member in twin.members:
            if not _correspond(member, wide_member):
                continue
            for number, places in enumerate(placement[(member.layer, member.axis)]):
                start = number * group.size if times > 1 else 0
                own = wide_member.index[start : start + group.size]
                places[member.index.reshape(-1)] = own.reshape(-1)


def _correspond(member: Member, wide_member: Member) -> bool:
    """Do both lie on the same axis, with equally many positions per channel?"""
    same_axis = (member.layer, member.axis) == (wide_member.layer, wide_member.axis)
    return same_axis and member.index.shape[1] == wide_member.index.shape[1]


def _completed(layout: list[Tensor], size: int) -> list[Tensor]:
    """`layout` with positions that have no place yet put where the wide axis of `size` is free,
    network after network; unchanged when their numbers differ.
    """
    taken = torch.zeros(size, dtype=torch.bool)
    taken[torch.cat([places[places != UNPLACED] for places in layout])] = True
    free = (~taken).nonzero()[:, 0]
    missing = [places == UNPLACED for places in layout]
    if len(free) == 0 or len(free) != sum(int(mask.sum()) for mask in missing):
        return layout
    return [
        places.masked_scatter(mask, part)
        for places, mask, part in zip(layout, missing, free.chunk(len(layout)), strict=True)
    ]
