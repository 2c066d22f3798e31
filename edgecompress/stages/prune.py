"""Stage `prune`: remove channels for the budgets, then let the network learn from the teacher
again.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import islice
from typing import Any

from torch import Tensor, nn

from edgecompress.core import ChannelGraph, shrink, trace
from edgecompress.core.select import Budget, Selection
from edgecompress.methods import scores as scoring
from edgecompress.methods.repair import repaired
from edgecompress.pipeline import Context, State
from edgecompress.settings import PruneStage
from edgecompress.stages.common import (
    count,
    fit_settings,
    learning_loss,
    validation_accuracy,
    watched,
    with_history,
    with_row,
)
from edgecompress.stages.goal import (
    Chooser,
    Plan,
    budgets,
    cost_now,
    file_bytes,
    first_sizes,
    only_layers,
    plan_for_amount,
    widths_after,
)
from edgecompress.train import distributed
from edgecompress.train.batches import batches
from edgecompress.train.fit import Loss, fit

REPAIR_IMAGES = 256
"""Training images from which a cut network takes its activation statistics back."""
LARGEST_STEP = 4.0
"""With `steps: auto` no step divides what a budget counts by more than this."""
FULL = 0.97
"""A planned file is refined until it takes at least this share of its budget (and at most all of
it).
"""


def score(
    context: Context, model: nn.Module, graph: ChannelGraph, settings: Any, loss: Loss
) -> scoring.Scores:
    """Scores of all groups by the recipe's criterion; those of the first process, where several
    train together.
    """
    found = _score(context, model, graph, settings, loss)
    distributed.agreed(found, context.device)
    return found


def _score(
    context: Context, model: nn.Module, graph: ChannelGraph, settings: Any, loss: Loss
) -> scoring.Scores:
    criterion = settings.criterion
    if criterion in ("l1", "l2"):
        return scoring.magnitude(model, graph, 1 if criterion == "l1" else 2)
    if criterion == "bn":
        return scoring.batchnorm_scale(model, graph)
    if criterion == "random":
        return scoring.random(graph, context.seed)
    chosen = fit_settings(context, model, settings, epochs=1)
    drawn = islice(
        batches(context.data, chosen, context.device, context.seed, 1),
        getattr(settings, "score_batches", 8),
    )
    return scoring.taylor(model, graph, loss, drawn)


def prune(context: Context, settings: PruneStage, state: State) -> State:
    """One step of pruning: its number and the number of steps are in the folder's name
    (`04-prune-1of3`).
    """
    planned = state.numbers.get("plan")
    if settings.amount is None and planned is not None and not planned["prune"]:
        return state
    model = state.need_model().to(context.device)
    graph = trace(model, context.example)
    state = _with_plan(context, settings, state, model, graph)
    plan = state.numbers["prune_plan"]
    if settings.steps == "auto":
        return _in_steps(context, settings, state, graph)
    step, steps = (int(part) for part in context.folder.name.rpartition("-")[2].split("of"))
    chosen = fit_settings(
        context, model, settings, epochs=1 if len(context.data.train) <= 10_000 else 2
    )
    loss = learning_loss(context, state, settings, chosen)
    only = only_layers(graph, settings.layers)
    chooser = Chooser(
        model,
        graph,
        score(context, model, graph, settings, loss),
        plan,
        settings.scope,
        first_sizes(state),
    )
    selection, small = cut_towards(context, chooser, plan, only, step, steps)
    numbers: dict[str, Any] = {}
    if not selection.met and step == steps:
        numbers["floors_reached"] = "the floors of all groups were reached first"
    kept = {g.name: int(selection.keep[g].sum()) for g in graph.groups}
    numbers["widths"] = widths_after(state, graph.groups, kept)
    repaired(model, small.to(context.device), selection.keep, repair_images(context))
    before = validation_accuracy(context, small)
    result = None
    chosen = fit_settings(context, small, settings, epochs=chosen.epochs)
    if chosen.epochs:
        hooks = watched(context, f"prune {step} of {steps}", settings.patience)
        result = fit(
            small, context.data, loss, chosen, seed=context.seed, device=context.device, hooks=hooks
        )
    accuracy = validation_accuracy(context, small)
    state = with_history(replace(state, model=small.cpu()), f"prune {step}of{steps}", result)
    return with_row(
        state.with_numbers(**numbers),
        f"prune {step}of{steps}",
        accuracy,
        count(small),
        at_cut=before,
    )


def repair_images(context: Context) -> Tensor:
    """The training images that a cut network is repaired on."""
    return context.data.normalised(context.data.train.pixels[:REPAIR_IMAGES]).to(context.device)


def _with_plan(
    context: Context, settings: PruneStage, state: State, model: nn.Module, graph: ChannelGraph
) -> State:
    """The state with `prune_plan`: the plan's limits, or those of this stage's amount, counted from
    the network before its first step.
    """
    planned = state.numbers.get("plan")
    if settings.amount is None and planned is not None:
        return state.with_numbers(prune_plan=planned)
    amount = settings.amount or "50%"
    current = state.numbers.get("prune_plan")
    if current is not None and current.get("amount") == amount:
        return state
    plan = plan_for_amount(
        context, model, graph, amount, settings.floor, settings.round_to, count(model)
    )
    return state.with_numbers(prune_plan=plan)


def _in_steps(context: Context, settings: PruneStage, state: State, graph: ChannelGraph) -> State:
    """Ask for as many steps as the way to the budget needs."""
    model = state.need_model()
    ratio = max(
        cost_now(model, graph, b.price) / max(b.limit, 1.0)
        for b in budgets(model, graph, state.numbers["prune_plan"])
    )
    steps = min(8, max(1, math.ceil(math.log(max(ratio, 1.0)) / math.log(LARGEST_STEP))))
    return state.with_numbers(next_stages=[{**settings.model_dump(mode="json"), "steps": steps}])


def cut_towards(
    context: Context,
    chooser: Chooser,
    plan: Plan,
    only: frozenset[str] | None,
    step: int,
    steps: int,
) -> tuple[Selection, nn.Module]:
    """Move towards the budgets by the same factor at each step; at the last, refine a byte budget
    with exact exports.
    """
    full = budgets(chooser.model, chooser.graph, plan)
    limits = []
    for budget in full:
        now = cost_now(chooser.model, chooser.graph, budget.price)
        share = min(1.0, budget.limit / now) ** (1 / (steps - step + 1))
        limits.append(Budget(budget.price, max(budget.limit, now * share)))
    selection = chooser.within(limits, only)
    small = shrink(chooser.model, selection.keep)
    if step < steps or plan["bytes"] is None:
        return selection, small
    return refine(context, chooser, plan, only, full, selection, small)


def refine(
    context: Context,
    chooser: Chooser,
    plan: Plan,
    only: frozenset[str] | None,
    full: list[Budget],
    selection: Selection,
    small: nn.Module,
) -> tuple[Selection, nn.Module]:
    """Choose again with a corrected byte budget until the exact file takes between `FULL` and all
    of the target.
    """
    target, allowed = plan["bytes"], float(plan["bytes"])
    best: tuple[int, Selection, nn.Module] | None = None
    for _ in range(4):
        size = file_bytes(context, small, plan["formats"][0])
        if size <= target and (best is None or size > best[0]):
            best = (size, selection, small)
        if FULL * target <= size <= target or not selection.met:
            break
        allowed *= (target if size > target else (1 + FULL) / 2 * target) / size
        if size > target:
            allowed *= 0.995
        selection = chooser.within(
            [Budget(b.price, allowed) if number == 0 else b for number, b in enumerate(full)], only
        )
        small = shrink(chooser.model, selection.keep)
    return (best[1], best[2]) if best is not None else (selection, small)
