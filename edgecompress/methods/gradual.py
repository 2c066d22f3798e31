"""When and how much to cut while a network trains: the share that each group keeps, and the epochs
of the cuts.

Cutting a share x of the remaining channels n times leaves y = (1 - x)^n, so
n = log(y) / log(1 - x) (García González 2022). A layer whose inputs keep a share a and whose
outputs keep a share b keeps a * b of its parameters; `dynamic` solves that for the shares that
global pruning would leave in each layer.
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
"""Share (0..1) of its channels that each group finally keeps, by group name."""


# When


@dataclass(frozen=True)
class Cut:
    """One cut: after the training of `epoch`, each group in `widths` has at most that many
    channels.
    """

    epoch: int
    widths: Mapping[str, int]


@dataclass(frozen=True)
class CutPlan:
    """All cuts of a training, in order of epochs, and the groups that keep more than requested,
    with the reason.
    """

    cuts: tuple[Cut, ...]
    left_alone: Mapping[str, str]

    def at(self, epoch: int) -> Cut | None:
        """The cut after `epoch`, if there is one."""
        return next((cut for cut in self.cuts if cut.epoch == epoch), None)


def cuts_needed(kept: float, step: float) -> int:
    """How many cuts of the share `step` leave the share `kept`: n = log(kept) / log(1 - step),
    rounded, at least 1 if anything is cut (García González 2022). Raises `UsageError` for a step
    outside 0..1.
    """
    if not 0 < step < 1:
        raise UsageError(
            f"step {step:g} is outside 0..1: give the share of channels that one cut "
            "removes, e.g. 2%"
        )
    if kept >= 1:
        return 0
    return max(1, round(math.log(max(kept, 1e-6)) / math.log(1 - step)))


def spread(count: int, schedule: str, epochs: int) -> list[int]:
    """`count` epochs (from 1), evenly over the part of a training that `schedule` names: early:
    all, middle: from 1/3, late: from 2/3.

    The last epoch has no cut if there are others, so that the network trains after the last cut.
    Raises `UsageError` for an unknown schedule.
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
    spreads each group's own number of cuts of the share `step`.

    After cut i of n a group of C channels that finally keeps the share y has round(C y^(i/n)),
    never fewer than its floor, the share `floor` of C. A group that would lose less than one
    channel is left alone. Raises `UsageError` for an epoch outside the training.
    """
    if not isinstance(schedule, str):
        _check_epochs(schedule, epochs)
    widths: dict[int, dict[str, int]] = {}
    left_alone: dict[str, str] = {}
    for group in groups:
        share = shares.get(group.name, 1.0)
        if share >= 1:
            continue
        lowest = floor_of(group.size, floor, 1)
        reason = _reason(group.size, share, lowest)
        if reason is not None:
            left_alone[group.name] = reason
        if round(group.size * share) >= group.size:
            continue
        if isinstance(schedule, str):
            at = spread(cuts_needed(share, step), schedule, epochs)
        else:
            at = sorted(schedule)
        for number, epoch in enumerate(at, start=1):
            width = round(group.size * share ** (number / len(at)))
            widths.setdefault(epoch, {})[group.name] = max(lowest, width)
    return CutPlan(tuple(Cut(epoch, widths[epoch]) for epoch in sorted(widths)), left_alone)


def _check_epochs(schedule: Sequence[int], epochs: int) -> None:
    wrong = [epoch for epoch in schedule if not 1 <= epoch <= epochs]
    if wrong or not schedule:
        raise UsageError(
            f"schedule names epoch {wrong[0] if wrong else '-'}: allowed are "
            f"1..{epochs}, at least one"
        )


def _reason(size: int, share: float, lowest: int) -> str | None:
    """Why a group of `size` channels keeps more than `share`, if it does."""
    width = round(size * share)
    if width >= size:
        return f"{1 - share:.1%} of {size} channels is less than one"
    if width < lowest:
        return (
            f"{1 - share:.1%} of {size} channels would leave {width}: kept at its floor of {lowest}"
        )
    return None


# How much


def static_shares(groups: Sequence[ChannelGroup], strength: float) -> Shares:
    """Every group keeps the share 1 - `strength`."""
    return {group.name: 1 - strength for group in groups}


def layer_shares(graph: ChannelGraph, removed: Mapping[str, float]) -> Shares:
    """Shares kept by group, from shares `removed` of the outputs of layers, by name; a group of
    several layers keeps the smallest. Raises as `groups_of` does.
    """
    shares: Shares = {}
    for layer, share in removed.items():
        for group in groups_of(graph, layer):
            shares[group.name] = min(shares.get(group.name, 1.0), 1 - share)
    return shares


def groups_of(graph: ChannelGraph, layer: str) -> list[ChannelGroup]:
    """The prunable groups that contain output channels of `layer`.

    Raises `UnknownNameError` for a layer that does not exist, `UsageError` for one whose outputs
    are frozen.
    """

    def has_outputs(group: ChannelGroup) -> bool:
        return any(m.layer == layer and m.writes for m in group.members)

    groups = [group for group in graph.groups if has_outputs(group)]
    if groups:
        return groups
    for group in graph.frozen:
        if has_outputs(group):
            raise UsageError(f"layer '{layer}' is frozen ({group.frozen}): leave it out")
    known = sorted({m.layer for g in graph.groups for m in g.members if m.writes})
    raise UnknownNameError("layer", layer, known)


class DynamicShares:
    """Shares for each group from the profile of global magnitude pruning: what it removes from each
    layer's parameters, layer by layer.
    """

    LEVELS = tuple(level / 20 for level in range(20))

    def __init__(self, model: nn.Module, graph: ChannelGraph) -> None:
        self._graph = graph
        self._widths = Widths(model, graph)
        removed = [zero_shares(model, level) for level in self.LEVELS]
        names = [name for name in self._widths.layers if name in removed[0]]
        self._rows = torch.tensor([self._widths.layers.index(name) for name in names])  # (R,)
        self._kept = torch.tensor(
            [[1 - level[name] for name in names] for level in removed], dtype=torch.float64
        )  # (levels, R)

    def __call__(self, strength: float) -> Shares:
        """Shares kept when global pruning removes the share `strength` (0..0.95) of all weights;
        linear between levels.
        """
        place = min(max(strength, 0.0), self.LEVELS[-1]) * 20
        low = min(int(place), len(self.LEVELS) - 2)
        kept = torch.lerp(self._kept[low], self._kept[low + 1], place - low)
        return solve_shares(self._graph, self._widths, self._rows, kept)


def solve_shares(graph: ChannelGraph, widths: Widths, rows: Tensor, kept: Tensor) -> Shares:
    """Group shares in 0..1 whose products a * b come nearest, in the logarithm, to the parameters
    `kept` (R,), shares in 0..1, of the layers `rows` (R,) of `widths`.

    Least squares over the complete graph, so residual streams and concatenations are shared as they
    are in the network. On a chain of layers it is the forward recursion b = kept / a, as long as
    that stays below 1.
    """
    sizes = torch.tensor([group.size for group in graph.groups], dtype=torch.float64)  # (G,)
    target = kept.clamp_min(1e-4).log()
    logits = torch.full_like(sizes, 2.0).requires_grad_()

    def loss() -> Tensor:
        inputs, outputs = widths.at(logits.sigmoid() * sizes)  # (L,) each
        inputs = torch.where(widths.whole, widths.full["in"], inputs)
        log_share = (inputs / widths.full["in"]).log() + (outputs / widths.full["out"]).log()
        return (log_share[rows] - target).pow(2).sum()

    if len(graph.groups):
        _minimise_(logits, loss)
    solved = logits.detach().sigmoid().tolist()
    return {group.name: share for group, share in zip(graph.groups, solved, strict=True)}


def _minimise_(variable: Tensor, loss: Callable[[], Tensor]) -> None:
    """Minimise `loss`, a function of `variable` (G,), by L-BFGS, in place."""
    solver = torch.optim.LBFGS(
        [variable],
        max_iter=300,
        tolerance_grad=1e-10,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        solver.zero_grad()
        value = loss()
        value.backward()
        return value

    solver.step(closure)


def strength_for(
    shares_at: Callable[[float], Shares], cost_of: Callable[[Shares], float], limit: float
) -> float:
    """The least strength (0..1) at which a network with the shares of that strength costs at most
    `limit`, by bisection; 1 if there is none.
    """
    if cost_of(shares_at(0.0)) <= limit:
        return 0.0
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        if cost_of(shares_at(middle)) <= limit:
            high = middle
        else:
            low = middle
    return high
