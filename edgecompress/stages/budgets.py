"""How far to prune: an amount or a plan as budgets, and whether a network meets them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

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
from edgecompress.run.context import Context
from edgecompress.run.state import SizePlan, State
from edgecompress.stages.common import candidate, count
from edgecompress.stages.plan.work import narrowest
from edgecompress.units import parse_amount


def plan_for_amount(
    context: Context,
    model: nn.Module,
    graph: ChannelGraph,
    amount: str,
    floor: float,
    round_to: int,
) -> SizePlan:
    """The plan that `amount` stands for; a share is of the parameters of `model`, a size is the
    fp32 file's.
    """
    kind, value = parse_amount(amount)
    plan = SizePlan(prune=True, formats=("fp32",), floor=floor, round_to=round_to, amount=amount)
    if kind == "share":
        return replace(plan, params=int(count(model) * (1 - value)))
    if kind == "params":
        return replace(plan, params=int(value))
    if kind == "macs":
        return replace(plan, macs=int(value))
    small = narrowest(context, model.cpu(), graph, "fp32", floor, round_to)
    model.to(context.device)
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


def meets(context: Context, model: nn.Module, plan: SizePlan) -> bool:
    """Does `model`, exactly counted and exported, hold every limit of `plan`?"""
    if plan.params is not None and count(model) > plan.params:
        return False
    if plan.macs is not None and cost(model, context.example).macs > plan.macs:
        return False
    return plan.bytes is None or file_bytes(context, model, plan.formats[0]) <= plan.bytes


def file_bytes(context: Context, model: nn.Module, form: str) -> int:
    """Bytes of the ONNX file of `model` in `form`, from a real export that is removed again."""
    path = candidate(context, model.cpu(), form)
    try:
        return path.stat().st_size
    finally:
        path.unlink()
        model.to(context.device)


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
        self.model, self.graph, self.scores = model, graph, scores
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
