"""Scores in, keep masks out: which channels stay.

`scores` maps a group to a tensor (C,), higher = keep. Three ways to choose:

    cheapest      channels compete over the network: those go that cost the least score per byte (or
                  MAC, or parameter) saved, until every budget holds
    uniform       the largest common share of channels that holds every budget
    top           the best channels for given widths, each group by itself; `top_overall` ranks all
                  groups together (`core/ranking`)

Nothing here reads a weight. Ties go to the earlier group and the lower channel, so that a choice is
reproducible.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgecompress.core.graph import ChannelGraph, ChannelGroup
from edgecompress.core.price import Price, Pricer, Widths, full_widths, pricer
from edgecompress.core.ranking import best_first, mask_of, top, top_overall

__all__ = [
    "Budget",
    "Price",
    "Pricer",
    "Selection",
    "Widths",
    "block_of",
    "cheapest",
    "floor_of",
    "full_widths",
    "pricer",
    "top",
    "top_overall",
    "uniform",
]

SPARE = 0.03
"""Share of a budget that may stay free before widths leave the multiples of `round_to`."""


@dataclass(frozen=True)
class Budget:
    """A price that must not exceed `limit`."""

    price: Price
    limit: float


@dataclass(frozen=True)
class Selection:
    """A choice of channels: the masks, and what each budget costs with them. `met` is false when
    the floors were reached first.
    """

    keep: dict[ChannelGroup, Tensor]
    costs: tuple[float, ...]
    met: bool


def block_of(size: int, round_to: int) -> int:
    """Channels that go at once from a group of `size`: `round_to`, but one by one where that would
    be more than a quarter of the group.
    """
    return round_to if size >= 4 * round_to else 1


def floor_of(size: int, floor: float, round_to: int) -> int:
    """Fewest channels a group of `size` may keep: the share `floor`, at least one block
    (`block_of`), never above `size`.
    """
    return min(size, max(block_of(size, round_to), round(size * floor)))


def _floor(
    group: ChannelGroup,
    floor: float,
    round_to: int,
    sizes: Mapping[str, int] | None,
    only: Collection[str] | None,
) -> int:
    if only is not None and group.name not in only:
        return group.size
    original = (sizes or {}).get(group.name, group.size)
    return min(group.size, floor_of(original, floor, round_to))


class _Limits:
    """The budgets, with what evaluates them."""

    def __init__(self, model: nn.Module, graph: ChannelGraph, budgets: Sequence[Budget]) -> None:
        widths = Widths(model, graph)
        self.pricers = [Pricer(widths, budget.price) for budget in budgets]
        self.limits = [budget.limit for budget in budgets]

    def costs(self, kept: Tensor) -> list[float]:
        """What each budget costs with `kept` (G,) channels left."""
        return [evaluated.cost(kept) for evaluated in self.pricers]

    def hold(self, costs: Sequence[float]) -> bool:
        """Is every budget met?"""
        return all(cost <= limit for cost, limit in zip(costs, self.limits, strict=True))

    def spare(self, costs: Sequence[float]) -> float:
        """The share of its limit that the tightest budget has left."""
        return min(1 - cost / limit for cost, limit in zip(costs, self.limits, strict=True))

    def pressure(self, kept: Tensor, costs: Sequence[float]) -> Tensor:
        """Price of one channel of each group (G,), summed over the budgets that are exceeded, each
        in units of its limit.
        """
        pressure = torch.zeros_like(kept)
        for evaluated, limit, cost in zip(self.pricers, self.limits, costs, strict=True):
            if cost > limit:
                pressure += evaluated.gradient(kept) / limit
        return pressure


class _Ranking:
    """The channels of each group from best to worst, and the score that any width retains."""

    def __init__(self, groups: Sequence[ChannelGroup], scores: Mapping[ChannelGroup, Tensor]):
        self.groups = groups
        self.order = [best_first(scores[group]) for group in groups]
        self.totals = [
            torch.cat(
                [torch.zeros(1, dtype=torch.float64), scores[group].double()[order].cumsum(0)]
            )
            for group, order in zip(groups, self.order, strict=True)
        ]

    def between(self, number: int, narrow: int, wide: int) -> float:
        """Score that group `number` has at width `wide` and no longer at `narrow`."""
        return float(self.totals[number][wide] - self.totals[number][narrow])

    def masks(self, kept: Tensor) -> dict[ChannelGroup, Tensor]:
        """Keep masks of the `kept` (G,) best channels of each group."""
        return {
            group: mask_of(order, int(count))
            for group, order, count in zip(self.groups, self.order, kept.tolist(), strict=True)
        }


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
    """Remove, until every budget holds, the channels whose loss of score per unit of cost is
    smallest. `scores` maps each group to (C,), higher = keep.

    Widths end on multiples of `round_to` in groups at least four times as wide (one that starts off
    a multiple may keep its size), and finer where more than 3 % of a budget would stay free. No
    group falls below `floor_of` its size; where the network was wider before, give its original
    widths in `sizes`, by group name, so that several cuts end at the same floors as one. With
    `only`, groups not named in it keep all channels. When the floors are reached first, `met` is
    false and the masks are those of the smallest network.
    """
    limits = _Limits(model, graph, budgets)
    ranking = _Ranking(graph.groups, scores)
    floors = [_floor(group, floor, round_to, sizes, only) for group in graph.groups]

    kept = _descend(graph.groups, limits, ranking, floors, round_to)
    if limits.hold(limits.costs(kept)):
        kept = _give_back(kept, graph.groups, limits, ranking, round_to)

    costs = limits.costs(kept)
    return Selection(ranking.masks(kept), tuple(costs), limits.hold(costs))


def _descend(
    groups: Sequence[ChannelGroup],
    limits: _Limits,
    ranking: _Ranking,
    floors: Sequence[int],
    round_to: int,
) -> Tensor:
    """Channels left in each group (G,) when every budget holds, or when all are at their floors.

    Greedy: each step takes the next block from the group that loses the least score per unit of
    cost saved.
    """
    kept = torch.tensor([float(group.size) for group in groups], dtype=torch.float64)
    costs = limits.costs(kept)
    while not limits.hold(costs):
        step = _cheapest_step(kept, limits.pressure(kept, costs), groups, ranking, floors, round_to)
        if step is None:
            break
        number, width = step
        kept[number] = width
        costs = limits.costs(kept)
    return kept


def _cheapest_step(
    kept: Tensor,
    pressure: Tensor,
    groups: Sequence[ChannelGroup],
    ranking: _Ranking,
    floors: Sequence[int],
    round_to: int,
) -> tuple[int, int] | None:
    """The group that loses the least score per unit of cost saved, and its next width; None when
    all are at their floors. `kept` and `pressure` are (G,).
    """
    best: tuple[int, int] | None = None
    best_ratio = float("inf")
    for number, group in enumerate(groups):
        width = int(kept[number])
        narrower = _next_width(group.size, width, floors[number], round_to)
        saved = float(pressure[number]) * (width - narrower)
        if narrower >= width or saved <= 0:
            continue
        ratio = ranking.between(number, narrower, width) / saved
        if ratio < best_ratio:
            best = (number, narrower)
            best_ratio = ratio
    return best


def _next_width(size: int, width: int, floor: int, round_to: int) -> int:
    """Width of a group of `size` after one more step down from `width`.

    A step is one block, or 1/64 of a wide group, so that the number of steps stays bounded.
    """
    block = block_of(size, round_to)
    step = max(block, size // 64 // block * block)
    if block == 1:
        return max(width - step, floor)
    return max((width - 1) // step * step, floor)  # down to the next multiple


def _give_back(
    kept: Tensor,
    groups: Sequence[ChannelGroup],
    limits: _Limits,
    ranking: _Ranking,
    round_to: int,
) -> Tensor:
    """`kept` (G,) with channels added where the last steps took more than the budgets require.

    Blocks of `round_to` come first; blocks of half the size, a quarter, ... only while more than
    3 % of every budget is free.
    """
    if not limits.limits:
        return kept
    block = round_to
    while block >= 1:
        if block < round_to and limits.spare(limits.costs(kept)) < SPARE:
            break
        wider = _widened(kept, groups, limits, ranking, block)
        if wider is None:
            block //= 2
        else:
            kept = wider
    return kept


def _widened(
    kept: Tensor,
    groups: Sequence[ChannelGroup],
    limits: _Limits,
    ranking: _Ranking,
    block: int,
) -> Tensor | None:
    """`kept` (G,) with one block more in the group that gains the most score and still fits; None
    when none fits.
    """
    gains = []
    for number, group in enumerate(groups):
        width = int(kept[number])
        wider = min(width + block, group.size)
        if wider > width:
            gains.append((ranking.between(number, width, wider), number, wider))

    for _, number, wider in sorted(gains, key=lambda gain: (-gain[0], gain[1])):
        candidate = kept.clone()
        candidate[number] = wider
        if limits.hold(limits.costs(candidate)):
            return candidate
    return None


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
    local), or of all together (global). `scores` maps each group to (C,), higher = keep.

    Locally each group keeps its best channels; globally scores are divided by their group's mean
    and ranked across groups. Floors, `sizes` and `only` as in `cheapest`; local widths are
    multiples of `round_to`.
    """
    limits = _Limits(model, graph, budgets)
    floors = {group.name: _floor(group, floor, round_to, sizes, only) for group in graph.groups}

    def at(share: float) -> Selection:
        widths = {
            group.name: max(floors[group.name], _share_of(group.size, share, round_to))
            for group in graph.groups
        }
        keep = top(scores, widths) if scope == "local" else top_overall(scores, widths, floors)
        kept = torch.tensor([float(keep[g].sum()) for g in graph.groups], dtype=torch.float64)
        costs = limits.costs(kept)
        return Selection(keep, tuple(costs), limits.hold(costs))

    return _largest_that_holds(at)


def _largest_that_holds(at: Callable[[float], Selection]) -> Selection:
    """`at` the largest share in 0..1 whose selection meets the budgets, by bisection; at 0 when
    none does.
    """
    full = at(1.0)
    if full.met:
        return full
    best = at(0.0)
    if not best.met:
        return best
    low = 0.0
    high = 1.0
    for _ in range(20):
        middle = (low + high) / 2
        selection = at(middle)
        if selection.met:
            best = selection
            low = middle
        else:
            high = middle
    return best


def _share_of(size: int, share: float, round_to: int) -> int:
    """`share` of `size`, to the nearest block."""
    block = block_of(size, round_to)
    return round(size * share / block) * block
