"""How far to prune: `amount` or the plan as budgets, and whether a network meets them."""

from __future__ import annotations

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
from edgecompress.pipeline import Context, State
from edgecompress.stages.common import candidate, count
from edgecompress.stages.plan import narrowest
from edgecompress.units import parse_amount

Plan = dict[str, Any]
"""Limits of a pruning: `bytes`, `macs`, `params` (None: no limit), `formats`, `fixed_bytes`,
`floor`, `round_to`.
"""


def plan_for_amount(
    context: Context,
    model: nn.Module,
    graph: ChannelGraph,
    amount: str,
    floor: float,
    round_to: int,
    first: int,
) -> Plan:
    """The plan that `amount` stands for; `first` is the number of parameters that a share counts
    from, a size is the fp32 file's.
    """
    kind, value = parse_amount(amount)
    plan: Plan = {
        "prune": True,
        "bytes": None,
        "macs": None,
        "params": None,
        "formats": ["fp32"],
        "fixed_bytes": 0.0,
        "floor": floor,
        "round_to": round_to,
        "amount": amount,
    }
    if kind == "share":
        return {**plan, "params": int(first * (1 - value))}
    if kind == "bytes":
        small = narrowest(context, model.cpu(), graph, "fp32", floor, round_to)
        model.to(context.device)
        plan |= {"fixed_bytes": small.fixed, "smallest_bytes": small.bytes}
    return {**plan, kind: int(value)}


def budgets(model: nn.Module, graph: ChannelGraph, plan: Plan) -> list[Budget]:
    """The plan's limits as prices over the widths of `model`; bytes come first."""
    found = []
    if plan["bytes"] is not None:
        found.append(
            Budget(byte_price(model, graph, plan["formats"][0], plan["fixed_bytes"]), plan["bytes"])
        )
    if plan["macs"] is not None:
        found.append(Budget(mac_price(model, graph), plan["macs"]))
    if plan.get("params") is not None:
        found.append(Budget(param_price(model, graph), plan["params"]))
    return found


def meets(context: Context, model: nn.Module, plan: Plan) -> bool:
    """Does `model`, exactly counted, exported and weighed, hold every limit?"""
    if plan.get("params") is not None and count(model) > plan["params"]:
        return False
    if plan["macs"] is not None and cost(model, context.example).macs > plan["macs"]:
        return False
    return plan["bytes"] is None or file_bytes(context, model, plan["formats"][0]) <= plan["bytes"]


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
        plan: Plan,
        scope: str,
        sizes: dict[str, int],
    ) -> None:
        self.model, self.graph, self.scores, self.scope = model, graph, scores, scope
        self.bounds: dict[str, Any] = {
            "floor": plan["floor"],
            "round_to": plan["round_to"],
            "sizes": sizes,
        }

    def within(self, limits: list[Budget], only: frozenset[str] | None) -> Selection:
        """Masks for the budgets."""
        if self.scope == "cost":
            return cheapest(
                self.model, self.graph, self.scores, tuple(limits), **self.bounds, only=only
            )
        return uniform(
            self.model, self.graph, self.scores, tuple(limits), self.scope, **self.bounds, only=only
        )


def cost_now(model: nn.Module, graph: ChannelGraph, price: Price) -> float:
    """What `model` costs as it is."""
    return pricer(model, graph, price).cost(full_widths(graph))


def first_sizes(state: State) -> dict[str, int]:
    """Channels of each group before the run's first cut, by name; empty before it."""
    return {name: old for name, (old, _) in state.numbers.get("widths", {}).items()}


def widths_after(
    state: State, before: tuple[ChannelGroup, ...], kept: dict[str, int]
) -> dict[str, list[int]]:
    """`{group: [channels before the run's first cut, channels now]}`."""
    first = first_sizes(state)
    return {g.name: [first.get(g.name, g.size), kept.get(g.name, g.size)] for g in before}
