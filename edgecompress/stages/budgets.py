"""How far to prune: an amount or a plan as budgets, and whether a network meets them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from edgecompress.core import ChannelGraph, ChannelGroup
from edgecompress.core.select import (
    Budget,
    Price,
    Selection,
    cheapest,
    full_widths,
    pricer,
    uniform,
)
from edgecompress.measure.cost import byte_price, cost, mac_price, param_price
from edgecompress.methods.gradual import groups_of
from edgecompress.methods.scores import Scores
from edgecompress.run.state import SizePlan, State
from edgecompress.stages.candidates import FileBytes
from edgecompress.stages.common import count
from edgecompress.stages.plan.work import at_floors
from edgecompress.units import parse_amount


def plan_for_amount(
    model: nn.Module,
    graph: ChannelGraph,
    amount: str,
    floor: float,
    round_to: int,
    file_bytes: FileBytes,
) -> SizePlan:
    """The plan that `amount` stands for; a share is of the parameters of `model`, a size is that of
    the fp32 file, which `file_bytes` counts.
    """
    kind, value = parse_amount(amount)
    plan = SizePlan(prune=True, formats=("fp32",), floor=floor, round_to=round_to, amount=amount)
    if kind == "share":
        return replace(plan, params=int(count(model) * (1 - value)))
    if kind == "params":
        return replace(plan, params=int(value))
    if kind == "macs":
        return replace(plan, macs=int(value))
    device = next(model.parameters()).device
    floors = at_floors(model.cpu(), graph, ("fp32",), floor, round_to)
    small = floors.narrowest("fp32", file_bytes(floors.network))
    model.to(device)
    return replace(plan, bytes=int(value), fixed_bytes=small.fixed, smallest_bytes=small.bytes)


def budgets_of(model: nn.Module, graph: ChannelGraph, plan: SizePlan) -> list[Budget]:
    """The plan's limits as prices over the widths of `model`; bytes come first."""
    budgets = []
    if plan.bytes is not None:
        price = byte_price(model, graph, plan.formats[0], plan.fixed_bytes)
        budgets.append(Budget(price, plan.bytes))
    if plan.macs is not None:
        budgets.append(Budget(mac_price(model, graph), plan.macs))
    if plan.params is not None:
        budgets.append(Budget(param_price(model, graph), plan.params))
    return budgets


def meets(model: nn.Module, plan: SizePlan, example: Tensor, file_bytes: FileBytes) -> bool:
    """Does `model`, exactly counted for images like `example` (1, C, H, W) and exported, hold every
    limit of `plan`? `file_bytes` counts the file in the plan's format.
    """
    if plan.params is not None and count(model) > plan.params:
        return False
    if plan.macs is not None and cost(model, example).macs > plan.macs:
        return False
    return plan.bytes is None or file_bytes(model) <= plan.bytes


def only_layers(graph: ChannelGraph, layers: tuple[str, ...] | None) -> frozenset[str] | None:
    """Names of the groups that hold the outputs of `layers`; None for no restriction. Raises as
    `groups_of` does.
    """
    if layers is None:
        return None
    return frozenset(group.name for layer in layers for group in groups_of(graph, layer))


class Chooser:
    """Chooses channels for budgets, the same way at every try of a stage."""

    def __init__(
        self,
        model: nn.Module,
        graph: ChannelGraph,
        scores: Scores,
        plan: SizePlan,
        scope: str,
        sizes: dict[str, int],
        only: frozenset[str] | None = None,
    ) -> None:
        self.model = model
        self.graph = graph
        self.scores = scores
        self.plan, self.scope = plan, scope
        self.sizes, self.only = sizes, only

    def within(self, limits: list[Budget]) -> Selection:
        """Masks for the budgets."""
        budgets = tuple(limits)
        choose = cheapest if self.scope == "cost" else partial(_uniform, self.scope)
        return choose(
            self.model,
            self.graph,
            self.scores,
            budgets,
            floor=self.plan.floor,
            round_to=self.plan.round_to,
            sizes=self.sizes,
            only=self.only,
        )


def _uniform(
    scope: str,
    model: nn.Module,
    graph: ChannelGraph,
    scores: Scores,
    budgets: tuple[Budget, ...],
    **bounds: Any,
) -> Selection:
    return uniform(model, graph, scores, budgets, scope, **bounds)


def cost_now(model: nn.Module, graph: ChannelGraph, price: Price) -> float:
    """What `model` costs as it is."""
    return pricer(model, graph, price).cost(full_widths(graph))


def first_sizes(state: State) -> dict[str, int]:
    """Channels of each group before the run's first cut, by name; empty before it."""
    return {name: first for name, (first, _) in state.widths.items()}


def widths_after(
    state: State, before: tuple[ChannelGroup, ...], kept: dict[str, int]
) -> dict[str, tuple[int, int]]:
    """(channels before the run's first cut, channels now) of each group, by name."""
    first = first_sizes(state)
    return {g.name: (first.get(g.name, g.size), kept.get(g.name, g.size)) for g in before}
