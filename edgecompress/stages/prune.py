"""Stages `prune` and `distill`: remove channels for the budgets, then let the network learn from the teacher again."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import nn

from edgecompress.core import ChannelGraph, shrink, trace
from edgecompress.core.select import Budget, Price, Selection, cheapest, full_widths, pricer
from edgecompress.measure.cost import byte_price, cost, mac_price
from edgecompress.methods import scores as scoring
from edgecompress.methods.repair import repaired
from edgecompress.pipeline import Context, State
from edgecompress.recipe import DistillStage, PruneStage
from edgecompress.stages.common import (
    candidate,
    count,
    fit_settings,
    learning_loss,
    validation_accuracy,
    with_history,
    with_row,
)
from edgecompress.train.fit import SMALL_PARAMS, Loss, batches, fit

REPAIR_IMAGES = 256
"""Training images from which a cut network takes its activation statistics back."""
LARGEST_STEP = 4.0
"""With `steps: auto` no step divides what a budget counts by more than this."""
FULL = 0.97
"""A planned file is refined until it takes at least this share of its budget (and at most all of it)."""


def score(context: Context, model: nn.Module, graph: ChannelGraph, settings: Any, loss: Loss) -> scoring.Scores:
    """Scores of all groups by the recipe's criterion."""
    criterion = settings.criterion
    if criterion in ("l1", "l2"):
        return scoring.magnitude(model, graph, 1 if criterion == "l1" else 2)
    if criterion == "bn":
        return scoring.batchnorm_scale(model, graph)
    if criterion == "random":
        return scoring.random(graph, context.seed)
    generator = torch.Generator().manual_seed(context.seed)
    chosen = fit_settings(context, model, settings, epochs=1)
    drawn = islice(batches(context.data, chosen, context.device, generator), getattr(settings, "score_batches", 8))
    return scoring.taylor(model, graph, loss, drawn)


def prune(context: Context, settings: PruneStage, state: State) -> State:
    """One step of pruning: its number and the number of steps are in the folder's name (`04-prune-1of3`)."""
    planned = state.numbers.get("plan")
    if settings.amount is None and planned is not None and not planned["prune"]:
        return state
    if settings.steps == "auto":
        return _in_steps(context, settings, state)
    step, steps = (int(part) for part in context.folder.name.rpartition("-")[2].split("of"))
    model = state.need_model().to(context.device)
    loss = learning_loss(context, state, settings)
    graph = trace(model, context.example)
    values = score(context, model, graph, settings, loss)
    name = f"prune {step} of {steps}"
    if settings.amount is not None or planned is None:
        selection, small = _by_amount(context, model, graph, values, settings, state, step, steps)
        numbers: dict[str, Any] = {"unpruned_params": state.numbers.get("unpruned_params", count(model))}
    else:
        selection, small = _by_plan(context, model, graph, values, planned, first_sizes(state), step, steps)
        numbers = {}
    if not selection.met and step == steps:
        numbers["floors_reached"] = True
    kept = {g.name: int(selection.keep[g].sum()) for g in graph.groups}
    first = state.numbers.get("widths", {})
    numbers["widths"] = {g.name: [first.get(g.name, [g.size])[0], kept[g.name]] for g in graph.groups}
    images = context.data.normalised(context.data.train.pixels[:REPAIR_IMAGES]).to(context.device)
    repaired(model, small.to(context.device), selection.keep, images)
    before = validation_accuracy(context, small)
    result = None
    chosen = fit_settings(context, small, settings, epochs=1 if len(context.data.train) <= 10_000 else 2)
    if chosen.epochs:
        result = fit(
            small.to(context.device), context.data, loss, chosen,
            seed=context.seed, device=context.device, on_step=context.progress(name),
        )  # fmt: skip
    accuracy = validation_accuracy(context, small)
    state = with_history(replace(state, model=small.cpu()), f"prune {step}of{steps}", result)
    return with_row(state.with_numbers(**numbers), f"prune {step}of{steps}", accuracy, count(small), at_cut=before)


def _in_steps(context: Context, settings: PruneStage, state: State) -> State:
    """Ask for as many steps as the way to the budget needs."""
    model = state.need_model()
    graph = trace(model, context.example)
    planned = state.numbers.get("plan")
    if settings.amount is not None or planned is None:
        ratio = 1 / max(1e-6, 1 - (settings.amount if settings.amount is not None else 0.5))
    else:
        widths = full_widths(graph)
        ratio = max(pricer(model, graph, b.price).cost(widths) / b.limit for b in _limits(context, model, graph, planned))
    steps = max(1, math.ceil(math.log(max(ratio, 1.0)) / math.log(LARGEST_STEP)))
    return state.with_numbers(next_stages=[{**settings.model_dump(mode="json"), "steps": steps}])


def _by_amount(
    context: Context,
    model: nn.Module,
    graph: ChannelGraph,
    values: scoring.Scores,
    settings: PruneStage,
    state: State,
    step: int,
    steps: int,
) -> tuple[Selection, nn.Module]:
    """Remove the share `amount` of the first network's parameters by the last step, the same factor at each."""
    first = state.numbers.get("unpruned_params", count(model))
    amount = settings.amount if settings.amount is not None else 0.5
    price = Price(dict.fromkeys(graph.output_shapes, 1.0), dict.fromkeys(graph.output_shapes, 1.0))
    now = pricer(model, graph, price).cost(full_widths(graph))
    wanted = first * (1 - amount)
    limit = now * (max(wanted, 1.0) / now) ** (1 / (steps - step + 1))
    sizes = first_sizes(state)
    selection = cheapest(model, graph, values, (Budget(price, limit),), floor=settings.floor, round_to=settings.round_to, sizes=sizes)
    return selection, shrink(model, selection.keep)


def first_sizes(state: State) -> dict[str, int]:
    """Channels of each group before the run's first cut, by name; empty before it."""
    return {name: old for name, (old, _) in state.numbers.get("widths", {}).items()}


def _limits(context: Context, model: nn.Module, graph: ChannelGraph, planned: dict[str, Any]) -> list[Budget]:
    found = []
    if planned["bytes"] is not None:
        found.append(Budget(byte_price(model, graph, planned["formats"][0], planned["fixed_bytes"]), planned["bytes"]))
    if planned["macs"] is not None:
        found.append(Budget(mac_price(model, graph), planned["macs"]))
    return found


def _by_plan(
    context: Context, model: nn.Module, graph: ChannelGraph, values: scoring.Scores, planned: dict[str, Any],
    sizes: dict[str, int], step: int, steps: int,
) -> tuple[Selection, nn.Module]:  # fmt: skip
    """Move towards the plan's budgets by the same factor at each step; at the last, refine with exact exports."""
    full = _limits(context, model, graph, planned)
    widths = full_widths(graph)
    floor, round_to = planned["floor"], planned["round_to"]
    limits = []
    for budget in full:
        now = pricer(model, graph, budget.price).cost(widths)
        share = min(1.0, budget.limit / now) ** (1 / (steps - step + 1))
        limits.append(Budget(budget.price, max(budget.limit, now * share)))

    selection = cheapest(model, graph, values, tuple(limits), floor=floor, round_to=round_to, sizes=sizes)
    small = shrink(model, selection.keep)
    if step < steps or planned["bytes"] is None:
        return selection, small
    return refine(context, model, graph, values, planned, sizes, full, selection, small)


def refine(
    context: Context, model: nn.Module, graph: ChannelGraph, values: scoring.Scores, planned: dict[str, Any],
    sizes: dict[str, int], full: list[Budget], selection: Selection, small: nn.Module,
) -> tuple[Selection, nn.Module]:  # fmt: skip
    """Choose again with a corrected byte budget until the exact file takes between `FULL` and all of the target."""
    target, allowed = planned["bytes"], float(planned["bytes"])
    best: tuple[int, Selection, nn.Module] | None = None
    for _ in range(4):
        path = candidate(context, small, planned["formats"][0])
        size = path.stat().st_size
        path.unlink()
        if size <= target and (best is None or size > best[0]):
            best = (size, selection, small)
        if FULL * target <= size <= target or not selection.met:
            break
        allowed *= (target if size > target else (1 + FULL) / 2 * target) / size
        if size > target:
            allowed *= 0.995
        budgets = [Budget(b.price, allowed) if number == 0 else b for number, b in enumerate(full)]
        floor, round_to = planned["floor"], planned["round_to"]
        selection = cheapest(model, graph, values, tuple(budgets), floor=floor, round_to=round_to, sizes=sizes)
        small = shrink(model, selection.keep)
    return (best[1], best[2]) if best is not None else (selection, small)


def distill(context: Context, settings: DistillStage, state: State) -> State:
    """Train the network on the teacher's outputs; nothing where nothing was pruned and no epochs are asked for."""
    planned = state.numbers.get("plan")
    if planned is not None and not planned["prune"]:
        return state
    model = state.need_model().to(context.device)
    chosen = fit_settings(context, model, settings, epochs=distill_epochs(context, model))
    loss = learning_loss(context, state, settings)
    result = fit(
        model, context.data, loss, chosen,
        seed=context.seed, device=context.device, on_step=context.progress("distill"),
    )  # fmt: skip
    accuracy = validation_accuracy(context, model)
    copied = _detached(model.cpu())
    state = with_history(replace(state, model=copied), "distill", result)
    return with_row(state, "distill", accuracy, cost(copied, context.example).params)


def distill_epochs(context: Context, model: nn.Module) -> int:
    """Epochs of distillation when nobody says: a small network learns slower and costs less an epoch."""
    if len(context.data.train) > 10_000:
        return 20
    return 4 if count(model) >= SMALL_PARAMS else 12


def _detached(model: nn.Module) -> nn.Module:
    """A new module object, so that the pipeline sees that the network changed."""
    return shrink(model, {})
