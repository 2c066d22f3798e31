"""When and how much to cut while a network trains: shares for each layer, and the epochs at which
they go.

Cutting a share x of what is left, n times, leaves y = (1 - x)^n, so n = log(y) / log(1 - x). A
layer whose inputs keep a share a and whose outputs keep a share b keeps a * b of its parameters;
`dynamic` solves that for the shares that global pruning would leave in each layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgecompress.core import ChannelGraph, ChannelGroup
from edgecompress.core.select import Widths, floor_of
from edgecompress.errors import UnknownNameError, UsageError
from edgecompress.methods.sparsify import zero_shares

SCHEDULES = ("early", "middle", "late")
_START = {"early": 0.0, "middle": 1 / 3, "late": 2 / 3}

Shares = dict[str, float]
"""Share (0..1) of its channels that each group keeps in the end, by group name."""


@dataclass(frozen=True)
class Cut:
    """One cut: after the training of `epoch`, each group in `widths` has at most that many
    channels.
    """

    epoch: int
    widths: Mapping[str, int]


@dataclass(frozen=True)
class CutPlan:
    """All cuts of a training, in order of epochs, and the groups that keep more than was asked,
    with the reason.
    """

    cuts: tuple[Cut, ...]
    left_alone: Mapping[str, str]

    def at(self, epoch: int) -> Cut | None:
        """The cut after `epoch`, if there is one."""
        return next((cut for cut in self.cuts if cut.epoch == epoch), None)


def cuts_needed(kept: float, step: float) -> int:
    """How many cuts of the share `step` leave the share `kept`: n = log(kept) / log(1 - step),
    rounded, at least 1 if anything goes.
    """
    if not 0 < step < 1:
        raise UsageError(
            f"step {step:g} is outside 0..1: give the share of channels that one cut "
            "removes, e.g. 2%"
        )
    return 0 if kept >= 1 else max(1, round(math.log(max(kept, 1e-6)) / math.log(1 - step)))


def spread(count: int, schedule: str, epochs: int) -> list[int]:
    """`count` epochs (from 1), evenly over the part of a training that `schedule` names: early:
    all, middle: from 1/3, late: from 2/3.

    The last epoch of a training stays free of cuts where it can, so that the network learns after
    the last one.
    """
    if schedule not in SCHEDULES:
        raise UsageError(
            f"schedule '{schedule}' is not known: allowed are {', '.join(SCHEDULES)}, or a "
            "list of epochs"
        )
    last = max(1, epochs - 1)
    first = min(last, math.floor(epochs * _START[schedule]) + 1)
    return [first + math.floor((i + 0.5) * (last - first + 1) / count) for i in range(count)]


def plan_cuts(
    groups: Sequence[ChannelGroup],
    shares: Shares,
    schedule: str | Sequence[int],
    epochs: int,
    *,
    step: float,
    floor: float,
) -> CutPlan:
    """Cuts that bring each group to its share. A list of epochs cuts all groups at each; a word
    spreads each group's own number of cuts.

    After cut i of n a group of C channels that keeps the share y in the end has round(C y^(i/n)),
    never fewer than its floor. A group whose share is less than one channel is left alone. Raises
    `UsageError` for an epoch outside the training.
    """
    if not isinstance(schedule, str):
        wrong = [e for e in schedule if not 1 <= e <= epochs]
        if wrong or not schedule:
            raise UsageError(
                f"schedule names epoch {wrong[0] if wrong else '-'}: allowed are "
                f"1..{epochs}, at least one"
            )
    widths: dict[int, dict[str, int]] = {}
    left: dict[str, str] = {}
    for group in groups:
        kept = shares.get(group.name, 1.0)
        if kept >= 1:
            continue
        lowest, wanted = floor_of(group.size, floor, 1), round(group.size * kept)
        if wanted >= group.size:
            left[group.name] = f"{1 - kept:.1%} of {group.size} channels is less than one"
            continue
        if wanted < lowest:
            left[group.name] = (
                f"{1 - kept:.1%} of {group.size} channels would leave {wanted}: kept at its "
                f"floor of {lowest}"
            )
        count = cuts_needed(kept, step)
        when = spread(count, schedule, epochs) if isinstance(schedule, str) else sorted(schedule)
        for number, epoch in enumerate(when, start=1):
            widths.setdefault(epoch, {})[group.name] = max(
                lowest, round(group.size * kept ** (number / len(when)))
            )
    return CutPlan(tuple(Cut(epoch, widths[epoch]) for epoch in sorted(widths)), left)


def static_shares(groups: Sequence[ChannelGroup], strength: float) -> Shares:
    """Every group keeps the share 1 - `strength`."""
    return {group.name: 1 - strength for group in groups}


def layer_shares(graph: ChannelGraph, removed: Mapping[str, float]) -> Shares:
    """Shares kept by group, from shares `removed` of the outputs of named layers. Raises as
    `groups_of` does.
    """
    found: Shares = {}
    for layer, share in removed.items():
        for group in groups_of(graph, layer):
            found[group.name] = min(found.get(group.name, 1.0), 1 - share)
    return found


def groups_of(graph: ChannelGraph, layer: str) -> list[ChannelGroup]:
    """The prunable groups that hold output channels of `layer`.

    Raises `UnknownNameError` for a layer that does not exist, `UsageError` for one whose outputs
    must all stay.
    """

    def makes(group: ChannelGroup) -> bool:
        return any(m.layer == layer and m.axis != "in" for m in group.members)

    found = [g for g in graph.groups if makes(g)]
    if not found:
        frozen = next((g for g in graph.frozen if makes(g)), None)
        if frozen is not None:
            raise UsageError(f"layer '{layer}' must stay whole ({frozen.frozen}): leave it out")
        known = sorted({m.layer for g in graph.groups for m in g.members if m.axis != "in"})
        raise UnknownNameError("layer", layer, known)
    return found


class DynamicShares:
    """Shares for each group from the profile of global magnitude pruning: what it takes from each
    layer's parameters, layer by layer.
    """

    LEVELS = tuple(level / 20 for level in range(20))

    def __init__(self, model: nn.Module, graph: ChannelGraph) -> None:
        self._graph, self._widths = graph, Widths(model, graph)
        taken = [zero_shares(model, level) for level in self.LEVELS]
        names = [n for n in self._widths.layers if n in taken[0]]
        self._rows = torch.tensor([self._widths.layers.index(n) for n in names])
        self._kept = torch.tensor(
            [[1 - level[n] for n in names] for level in taken], dtype=torch.float64
        )  # (levels, layers)

    def __call__(self, strength: float) -> Shares:
        """Shares kept when global pruning takes the share `strength` (0..0.95) of all weights;
        between levels, linear.
        """
        place = min(max(strength, 0.0), self.LEVELS[-1]) * 20
        low = min(int(place), len(self.LEVELS) - 2)
        kept = torch.lerp(self._kept[low], self._kept[low + 1], place - low)
        return solve_shares(self._graph, self._widths, self._rows, kept)


def solve_shares(graph: ChannelGraph, widths: Widths, rows: Tensor, kept: Tensor) -> Shares:
    """Group shares in 0..1 whose products a * b come nearest, in the logarithm, to the parameters
    `kept` (R,) by the layers in `rows` (R,).

    Least squares over the whole graph, so residual streams and concats are shared as they are in
    the network. On a chain of layers it is the forward recursion b = kept / a, as far as that stays
    below 1.
    """
    sizes = torch.tensor([group.size for group in graph.groups], dtype=torch.float64)
    target = kept.clamp_min(1e-4).log()
    free = torch.full_like(sizes, 2.0).requires_grad_()
    solver = torch.optim.LBFGS(
        [free],
        max_iter=300,
        tolerance_grad=1e-10,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        solver.zero_grad()
        inputs, outputs = widths.at(free.sigmoid() * sizes)
        inputs = torch.where(widths.whole, widths.full["in"], inputs)
        share = (inputs / widths.full["in"]).log() + (outputs / widths.full["out"]).log()
        loss = (share[rows] - target).pow(2).sum()
        loss.backward()
        return loss

    if len(graph.groups):
        solver.step(closure)
    solved = free.detach().sigmoid().tolist()
    return {group.name: share for group, share in zip(graph.groups, solved, strict=True)}


def strength_for(
    shares_at: Callable[[float], Shares], cost_of: Callable[[Shares], float], limit: float
) -> float:
    """The least strength (0..1) at which a network with the shares of that strength costs at most
    `limit`, by bisection; 1 if none does.
    """
    if cost_of(shares_at(0.0)) <= limit:
        return 0.0
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (low, middle) if cost_of(shares_at(middle)) <= limit else (middle, high)
    return high
