"""Scores in, keep masks out: which channels stay.

`scores` maps a group to a tensor (C,), higher = keep. `cheapest` removes channels where a byte (or
MAC) costs the least importance, across the whole network, until every budget holds. Nothing here
reads a weight.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from edgecompress.core import layers
from edgecompress.core.graph import ChannelGraph, ChannelGroup


@dataclass(frozen=True)
class Price:
    """What a network costs in some unit, as a function of the widths that are left.

    A mixing layer costs `per_weight[layer]` for each of its weights and `per_output[layer]` for
    each output channel; a channelwise layer costs `per_channel[layer]` for each channel; `fixed`
    comes on top.
    """

    per_weight: Mapping[str, float]
    per_output: Mapping[str, float]
    fixed: float = 0.0
    per_channel: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Budget:
    """A price that must not exceed `limit`."""

    price: Price
    limit: float


@dataclass(frozen=True)
class Selection:
    """A choice of channels: the masks, and what each budget costs with them. `met` is false when
    the floors stopped it.
    """

    keep: dict[ChannelGroup, Tensor]
    costs: tuple[float, ...]
    met: bool


class Widths:
    """Widths of all mixing layers as a linear function of the number of channels kept in each
    group.
    """

    def __init__(self, model: nn.Module, graph: ChannelGraph) -> None:
        self.layers = [n for n, m in model.named_modules() if layers.is_mixing(m)]
        number = {name: i for i, name in enumerate(self.layers)}
        shape = (len(graph.groups), len(self.layers))
        self.rows = {axis: torch.zeros(shape, dtype=torch.float64) for axis in ("in", "out")}
        for g, group in enumerate(graph.groups):
            for member in group.members:
                if member.layer in number and member.axis in self.rows:
                    self.rows[member.axis][g, number[member.layer]] += member.index.shape[1]
        sizes = torch.tensor([g.size for g in graph.groups], dtype=torch.float64)
        modules = [model.get_submodule(n) for n in self.layers]
        self.full = {
            a: torch.tensor([layers.axis_size(m, a) for m in modules], dtype=torch.float64)
            for a in ("in", "out")
        }
        self.fixed = {a: self.full[a] - sizes @ self.rows[a] for a in ("in", "out")}
        # positions that one channel of each group owns in a channelwise layer, (G,)
        self.through = {
            member.layer: torch.zeros(len(graph.groups), dtype=torch.float64)
            for group in graph.groups
            for member in group.members
            if member.axis == "through"
        }
        for g, group in enumerate(graph.groups):
            for member in group.members:
                if member.axis == "through":
                    self.through[member.layer][g] += member.index.shape[1]
        # weights = unit * in * out; where whole groups go, each output reads a fixed number of
        # inputs: weights = unit * out
        self.whole = torch.tensor([layers.loses_whole_groups(m) for m in modules])
        self.unit = torch.tensor([layers.unit_weights(m) for m in modules], dtype=torch.float64)

    def at(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and outputs (L,) of every layer when `kept` (G,) channels are left."""
        return kept @ self.rows["in"] + self.fixed["in"], kept @ self.rows["out"] + self.fixed[
            "out"
        ]


class Pricer:
    """Evaluates a `Price` and its gradient for numbers of kept channels. Vectors: kept (G,), cost
    scalar, gradient (G,).
    """

    def __init__(self, widths: Widths, price: Price) -> None:
        self.widths = widths
        self.per_weight = torch.tensor(
            [price.per_weight.get(n, 0.0) for n in widths.layers], dtype=torch.float64
        )
        self.per_output = torch.tensor(
            [price.per_output.get(n, 0.0) for n in widths.layers], dtype=torch.float64
        )
        self.per_group = torch.zeros(len(widths.rows["in"]), dtype=torch.float64)
        for name, each in price.per_channel.items():
            self.per_group += each * widths.through.get(name, torch.zeros_like(self.per_group))
        self.fixed = price.fixed

    def cost(self, kept: Tensor) -> float:
        """The price of the network with `kept` (G,) channels left in each group."""
        a, b = self.widths.at(kept)
        weights = self.widths.unit * b * torch.where(self.widths.whole, torch.ones_like(a), a)
        return (
            float((self.per_weight * weights + self.per_output * b).sum() + self.per_group @ kept)
            + self.fixed
        )

    def gradient(self, kept: Tensor) -> Tensor:
        """Price of one more channel in each group, (G,)."""
        a, b = self.widths.at(kept)
        pair = self.per_weight * self.widths.unit
        by_out = pair * torch.where(self.widths.whole, torch.ones_like(a), a) + self.per_output
        by_in = pair * torch.where(self.widths.whole, torch.zeros_like(b), b)
        return self.widths.rows["out"] @ by_out + self.widths.rows["in"] @ by_in + self.per_group


def pricer(model: nn.Module, graph: ChannelGraph, price: Price) -> Pricer:
    """A `Pricer` for `price` on the groups of `graph`, the trace of `model`."""
    return Pricer(Widths(model, graph), price)


def full_widths(graph: ChannelGraph) -> Tensor:
    """Channels of every prunable group, (G,), float64: the `kept` of a network that is not
    pruned.
    """
    return torch.tensor([float(group.size) for group in graph.groups], dtype=torch.float64)


def block_of(size: int, round_to: int) -> int:
    """Channels that go at once from a group of `size`: `round_to`, but one by one where that were
    more than a quarter.
    """
    return round_to if size >= 4 * round_to else 1


def floor_of(size: int, floor: float, round_to: int) -> int:
    """Fewest channels a group of `size` may keep: the share `floor`, at least one block
    (`block_of`), never above `size`.
    """
    return min(size, max(block_of(size, round_to), round(size * floor)))


def cheapest(
    model: nn.Module,
    graph: ChannelGraph,
    scores: Mapping[ChannelGroup, Tensor],
    budgets: tuple[Budget, ...],
    *,
    floor: float = 0.02,
    round_to: int = 1,
    sizes: Mapping[str, int] | None = None,
    only: Collection[str] | None = None,
) -> Selection:
    """Remove, until every budget holds, the channels whose loss of score a unit of cost is
    smallest.

    Widths end on multiples of `round_to` in groups at least four times as wide (one that starts off
    a multiple may keep its size), and finer where more than 3 % of a budget would stay free; no
    group falls below `floor_of` its size (that in `sizes`, by name, where the network was wider
    before: several cuts end at the same floors as one). With `only`, other groups (by name) stay
    whole. Ties go to the earlier group and the lower channel. When the floors are reached first,
    `met` is false and the masks are those of the smallest network.
    """
    widths = Widths(model, graph)
    pricers = [Pricer(widths, b.price) for b in budgets]
    order = [scores[g].double().argsort(descending=True, stable=True) for g in graph.groups]
    totals = [
        torch.cat([torch.zeros(1, dtype=torch.float64), scores[g].double()[o].cumsum(0)])
        for g, o in zip(graph.groups, order, strict=True)
    ]
    kept = full_widths(graph)
    floors = [_floor(g, floor, round_to, sizes, only) for g in graph.groups]

    def next_width(g: int) -> int:
        width, block = int(kept[g]), block_of(graph.groups[g].size, round_to)
        step = max(block, graph.groups[g].size // 64 // block * block)
        lower = (width - 1) // step * step if block > 1 else width - step
        return max(lower, floors[g])

    costs = [p.cost(kept) for p in pricers]
    while any(c > b.limit for c, b in zip(costs, budgets, strict=True)):
        price = torch.zeros(len(graph.groups), dtype=torch.float64)
        for p, b, c in zip(pricers, budgets, costs, strict=True):
            if c > b.limit:
                price += p.gradient(kept) / b.limit
        best, choice = float("inf"), -1
        for g in range(len(graph.groups)):
            width = next_width(g)
            saved = float(price[g]) * (int(kept[g]) - width)
            if width < int(kept[g]) and saved > 0:
                lost = float(totals[g][int(kept[g])] - totals[g][width])
                if lost / saved < best:
                    best, choice = lost / saved, g
        if choice < 0:
            break
        kept[choice] = next_width(choice)
        costs = [p.cost(kept) for p in pricers]
    met = all(c <= b.limit for c, b in zip(costs, budgets, strict=True))
    if met:
        costs = _fill(kept, graph, totals, pricers, budgets, round_to)
    return Selection(_masks(graph, order, kept), tuple(costs), met)


def _fill(
    kept: Tensor,
    graph: ChannelGraph,
    totals: list[Tensor],
    pricers: list[Pricer],
    budgets: tuple[Budget, ...],
    round_to: int,
) -> list[float]:
    """Give back, in place, what the last steps took too much: blocks of `round_to` first, of fewer
    channels while over 3 % is free.
    """
    costs = [p.cost(kept) for p in pricers]
    block = round_to
    while block >= 1 and budgets:
        full = min(1 - c / b.limit for c, b in zip(costs, budgets, strict=True)) < 0.03
        if full and block < round_to:
            break
        gains = []
        for g, group in enumerate(graph.groups):
            width = min(int(kept[g]) + block, group.size)
            if width > int(kept[g]):
                gains.append((float(totals[g][width] - totals[g][int(kept[g])]), g, width))
        for _, g, width in sorted(gains, key=lambda gain: (-gain[0], gain[1])):
            old = float(kept[g])
            kept[g] = width
            tried = [p.cost(kept) for p in pricers]
            if all(c <= b.limit for c, b in zip(tried, budgets, strict=True)):
                costs = tried
                break
            kept[g] = old
        else:
            block //= 2
    return costs


def _floor(
    group: ChannelGroup,
    floor: float,
    round_to: int,
    sizes: Mapping[str, int] | None,
    only: Collection[str] | None,
) -> int:
    if only is not None and group.name not in only:
        return group.size
    return min(group.size, floor_of((sizes or {}).get(group.name, group.size), floor, round_to))


def uniform(
    model: nn.Module,
    graph: ChannelGraph,
    scores: Mapping[ChannelGroup, Tensor],
    budgets: tuple[Budget, ...],
    scope: str,
    *,
    floor: float = 0.02,
    round_to: int = 1,
    sizes: Mapping[str, int] | None = None,
    only: Collection[str] | None = None,
) -> Selection:
    """Keep the largest common share of channels that holds every budget: of each group (`scope`
    local), or of all together (global).

    Locally each group keeps its best channels; globally scores are divided by their group's mean
    and ranked across groups. Floors, `sizes` and `only` as in `cheapest`; local widths are
    multiples of `round_to`.
    """
    pricers = [Pricer(Widths(model, graph), b.price) for b in budgets]
    floors = {g.name: _floor(g, floor, round_to, sizes, only) for g in graph.groups}

    def at(share: float) -> Selection:
        widths = {
            g.name: max(floors[g.name], _rounded(g.size * share, block_of(g.size, round_to)))
            for g in graph.groups
        }
        keep = top(scores, widths) if scope == "local" else top_overall(scores, widths, floors)
        kept = torch.tensor([float(keep[g].sum()) for g in graph.groups], dtype=torch.float64)
        costs = tuple(p.cost(kept) for p in pricers)
        return Selection(
            keep, costs, all(c <= b.limit for c, b in zip(costs, budgets, strict=True))
        )

    best, low, high = at(0.0), 0.0, 1.0
    if at(1.0).met:
        return at(1.0)
    for _ in range(20 if best.met else 0):
        middle = (low + high) / 2
        tried = at(middle)
        if tried.met:
            best, low = tried, middle
        else:
            high = middle
    return best


def _rounded(width: float, block: int) -> int:
    return round(width / block) * block


def top(
    scores: Mapping[ChannelGroup, Tensor], widths: Mapping[str, int]
) -> dict[ChannelGroup, Tensor]:
    """Local choice: the `widths[name]` best channels of each group, of equal ones the lower. Groups
    not named stay whole.
    """
    keep = {}
    for group, values in scores.items():
        width = min(widths.get(group.name, group.size), group.size)
        keep[group] = _best(values, width)
    return keep


def top_overall(
    scores: Mapping[ChannelGroup, Tensor], widths: Mapping[str, int], floors: Mapping[str, int]
) -> dict[ChannelGroup, Tensor]:
    """Global choice: as many channels as `widths` leaves in all, those with the highest scores
    divided by their group's mean.

    Groups not named in `widths` stay whole; no other falls below `floors[name]`. Of equal scores
    the earlier group and lower channel stay.
    """
    chosen = [group for group in scores if group.name in widths]
    keep = {group: torch.ones(group.size, dtype=torch.bool) for group in scores}
    total = sum(min(widths[group.name], group.size) for group in chosen)
    ranked = []
    for group in chosen:
        relative = scores[group].double() / scores[group].double().mean().clamp_min(1e-30)
        must = _best(relative, min(floors.get(group.name, 1), group.size))
        keep[group] = must
        ranked.append(torch.where(must, torch.inf, relative))
    if chosen:
        order = torch.cat(ranked).argsort(descending=True, stable=True)
        stays = torch.zeros(len(order), dtype=torch.bool)
        stays[order[: max(total, sum(int(keep[g].sum()) for g in chosen))]] = True
        keep |= dict(zip(chosen, stays.split([g.size for g in chosen]), strict=True))
    return keep


def _best(values: Tensor, count: int) -> Tensor:
    mask = torch.zeros(len(values), dtype=torch.bool)
    mask[values.double().argsort(descending=True, stable=True)[:count]] = True
    return mask


def _masks(graph: ChannelGraph, order: list[Tensor], kept: Tensor) -> dict[ChannelGroup, Tensor]:
    keep = {}
    for group, ranked, count in zip(graph.groups, order, kept.tolist(), strict=True):
        mask = torch.zeros(group.size, dtype=torch.bool)
        mask[ranked[: int(count)]] = True
        keep[group] = mask
    return keep
