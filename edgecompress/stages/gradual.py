"""Stage `gradual`: train and prune at once; the network becomes smaller between epochs."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from edgecompress.core import ChannelGraph, shrink, trace
from edgecompress.core.select import Budget, floor_of, pricer, top, top_overall, uniform
from edgecompress.core.shrink import Keep
from edgecompress.methods.gradual import (
    CutPlan,
    DynamicShares,
    Shares,
    layer_shares,
    plan_cuts,
    static_shares,
    strength_for,
)
from edgecompress.methods.repair import repaired
from edgecompress.pipeline import Context, State
from edgecompress.settings import GradualStage
from edgecompress.stages.common import (
    count,
    fit_settings,
    learning_loss,
    validation_accuracy,
    watched,
    with_history,
    with_row,
)
from edgecompress.stages.goal import Plan, budgets, first_sizes, meets, only_layers, plan_for_amount
from edgecompress.stages.prune import repair_images, score
from edgecompress.train.fit import FitResult, Hooks, Loss, fit
from edgecompress.train.settings import FitSettings


@dataclass(frozen=True)
class Shrinking:
    """How one network is cut while it trains: the hooks for the loop, the cuts planned, and the
    widths before the first.
    """

    hooks: Hooks
    cuts: CutPlan
    shares: Shares
    before: dict[str, int]

    def report(self, result: FitResult) -> dict[str, Any]:
        """What `result.json` says of it."""
        return {
            "shares": {name: round(share, 6) for name, share in self.shares.items()},
            "left_alone": dict(self.cuts.left_alone),
            "cuts": [{"epoch": c.epoch, "widths": dict(c.widths)} for c in self.cuts.cuts],
            "chosen_epoch": result.best_epoch,
            "met": result.eligible,
        }


def shrinking(
    context: Context, settings: GradualStage, model: nn.Module, loss: Loss, epochs: int, text: str
) -> Shrinking:
    """Plan the cuts that `settings` ask for over a training of `epochs` epochs; `text` names it on
    the progress bar.
    """
    graph = trace(model, context.example)
    plan = None
    if settings.amount is not None:
        plan = plan_for_amount(
            context, model, graph, settings.amount, settings.floor, 1, count(model)
        )
    shares = final_shares(model, graph, settings, plan)
    cuts = plan_cuts(
        graph.groups, shares, settings.schedule, epochs, step=settings.step, floor=settings.floor
    )
    for name, reason in cuts.left_alone.items():
        context.reporter.note(f"{name}: {reason}")
    before, images = {g.name: g.size for g in graph.groups}, repair_images(context)
    hooks = replace(
        watched(context, text, settings.patience),
        cut=Cutter(context, settings, plan, cuts, before, loss),
        mend=lambda old, small, keep: repaired(old, small, keep, images),
        eligible=partial(_eligible, context, plan, cuts, {}),
    )
    return Shrinking(hooks, cuts, shares, before)


UNMET = "no epoch met the amount: give more epochs, a larger step or an earlier schedule"
"""Why the network of a training that was cut may be larger than asked."""


def gradual(context: Context, settings: GradualStage, state: State) -> State:
    """Train the network while it is cut; the epoch chosen is the best one that meets the amount."""
    model = state.need_model().to(context.device)
    params, chosen = count(model), fit_settings(context, model, settings)
    loss = learning_loss(context, state, settings, chosen)
    planned = shrinking(context, settings, model, loss, chosen.epochs, "train and prune")
    if settings.control:
        state = _with_control(context, state, copy.deepcopy(model), loss, chosen)
    result = fit(
        model,
        context.data,
        loss,
        chosen,
        seed=context.seed,
        device=context.device,
        hooks=planned.hooks,
    )
    small = result.model
    state = with_history(replace(state, model=fresh(small)), "gradual", result)
    numbers: dict[str, Any] = {
        "gradual": planned.report(result),
        "widths": widths_now(context, state, small, planned.before),
    }
    if not result.eligible:
        numbers["floors_reached"] = UNMET
    note = (
        f"{len(planned.cuts.cuts)} cut(s); epoch {result.best_epoch} chosen; {params} "
        "parameters before"
    )
    accuracy = validation_accuracy(context, small)
    return with_row(
        state.with_numbers(**numbers),
        "gradual",
        accuracy,
        count(small),
        note=note,
        wall_s=seconds(result),
    )


def widths_now(
    context: Context, state: State, small: nn.Module, before: dict[str, int]
) -> dict[str, list[int]]:
    """`{group: [channels before the run's first cut, channels now]}` of a network whose groups had
    `before` channels.
    """
    kept = {g.name: g.size for g in trace(small, context.example).groups}
    return {
        name: [first_sizes(state).get(name, size), kept.get(name, size)]
        for name, size in before.items()
    }


def _with_control(
    context: Context, state: State, model: nn.Module, loss: Loss, chosen: FitSettings
) -> State:
    """The state with the epochs of the same network, data, seed and settings without cuts: what
    pruning is compared with.
    """
    hooks = watched(context, "train without cuts")
    result = fit(
        model, context.data, loss, chosen, seed=context.seed, device=context.device, hooks=hooks
    )
    best, spent = result.best.validation_accuracy, seconds(result)
    return with_row(
        with_history(state, "unpruned", result),
        "unpruned (control)",
        best,
        count(model),
        wall_s=spent,
    )


def seconds(result: FitResult) -> float:
    """Seconds that all epochs of a training took."""
    return round(sum(row.seconds for row in result.history), 3)


def fresh(model: nn.Module) -> nn.Module:
    """A new module object, so that the pipeline sees that the network changed."""
    return shrink(model.cpu(), {})


def final_shares(
    model: nn.Module, graph: ChannelGraph, settings: GradualStage, plan: Plan | None
) -> Shares:
    """The share of its channels that each group keeps in the end, so that the whole meets `plan`
    (or as the recipe names them).
    """
    if isinstance(settings.shares, dict):
        return layer_shares(graph, settings.shares)
    if plan is None:
        return {}
    only = only_layers(graph, settings.layers)
    limits = [_with_margin(b, plan) for b in budgets(model, graph, plan)]
    prices = [pricer(model, graph, b.price) for b in limits]
    dynamic = DynamicShares(model, graph) if settings.shares == "dynamic" else None

    def at(strength: float) -> Shares:
        shares = (
            dynamic(strength * 0.95)
            if dynamic is not None
            else static_shares(graph.groups, strength)
        )
        return (
            shares
            if only is None
            else {name: share for name, share in shares.items() if name in only}
        )

    def over(shares: Shares) -> float:
        kept = [
            max(floor_of(g.size, settings.floor, 1), round(g.size * shares.get(g.name, 1.0)))
            for g in graph.groups
        ]
        widths = torch.tensor(
            [float(min(k, g.size)) for k, g in zip(kept, graph.groups, strict=True)],
            dtype=torch.float64,
        )
        return max(
            price.cost(widths) / max(limit.limit, 1e-9)
            for price, limit in zip(prices, limits, strict=True)
        )

    return at(strength_for(at, over, 1.0))


def _with_margin(budget: Budget, plan: Plan) -> Budget:
    """A byte budget with 1 % to spare: the price is an estimate of the file, which is weighed when
    it is done.
    """
    return (
        Budget(budget.price, budget.limit * 0.99)
        if plan["bytes"] is not None and budget.limit == plan["bytes"]
        else budget
    )


def _eligible(
    context: Context, plan: Plan | None, cuts: CutPlan, known: dict[Any, bool], model: nn.Module
) -> bool:
    """May the epoch that left `model` be chosen? It meets the amount; without one, it has had every
    cut.
    """
    key = tuple(parameter.shape for parameter in model.parameters())
    if key not in known:
        if plan is not None:
            known[key] = meets(context, model, plan)
        else:
            last: dict[str, int] = {}
            for cut in cuts.cuts:
                last |= cut.widths
            known[key] = all(
                last.get(g.name, g.size) >= g.size for g in trace(model, context.example).groups
            )
    return known[key]


class Cutter:
    """The hook of the training loop that chooses what goes after an epoch."""

    def __init__(
        self,
        context: Context,
        settings: GradualStage,
        plan: Plan | None,
        cuts: CutPlan,
        sizes: dict[str, int],
        loss: Loss,
    ) -> None:
        self.context, self.settings, self.plan, self.cuts, self.sizes, self.loss = (
            context,
            settings,
            plan,
            cuts,
            sizes,
            loss,
        )
        self.floors = {name: floor_of(size, settings.floor, 1) for name, size in sizes.items()}

    def __call__(self, model: nn.Module, epoch: int) -> Keep | None:
        """Masks for the cut after `epoch`; None where there is none."""
        cut = self.cuts.at(epoch)
        if cut is None:
            return None
        graph = trace(model, self.context.example)
        scores = score(self.context, model, graph, self.settings, self.loss)
        if self.settings.scope == "local":
            return top(scores, cut.widths)
        if self.plan is not None and cut is self.cuts.cuts[-1]:
            only = None if self.settings.layers is None else frozenset(cut.widths)
            limits = tuple(_with_margin(b, self.plan) for b in budgets(model, graph, self.plan))
            return uniform(
                model,
                graph,
                scores,
                limits,
                "global",
                floor=self.settings.floor,
                sizes=self.sizes,
                only=only,
            ).keep
        return top_overall(scores, cut.widths, self.floors)
