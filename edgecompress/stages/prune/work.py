"""Remove channels for the budgets, then let the network learn from the teacher again."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from torch import Tensor, nn

from edgecompress.core import ChannelGraph, shrink
from edgecompress.core.proof import check, trace
from edgecompress.core.select import Budget, Selection
from edgecompress.methods import scores as scoring
from edgecompress.methods.repair import repaired
from edgecompress.run.context import Context, TrainingContext
from edgecompress.run.stage import StageResult
from edgecompress.run.state import SizePlan, StageRow, State
from edgecompress.stages.budgets import (
    Chooser,
    budgets_of,
    cost_now,
    first_sizes,
    only_layers,
    plan_for_amount,
    widths_after,
)
from edgecompress.stages.candidates import FileBytes, Sizes, file_bytes
from edgecompress.stages.common import count, learning_loss, validation_accuracy, watched
from edgecompress.stages.fields import Training
from edgecompress.stages.frozen import with_frozen
from edgecompress.stages.training import fit_settings, train_model
from edgecompress.train import distributed
from edgecompress.train.batches import batches
from edgecompress.train.fit import FitResult, Loss
from edgecompress.train.settings import LARGE_SPLIT, FitSettings

if TYPE_CHECKING:
    from edgecompress.stages.prune import PruneStage, PruneStep

REPAIR_IMAGES = 256
"""Training images from which a cut network takes its activation statistics back."""
LARGEST_STEP = 4.0
"""With `steps: auto` no step divides what a budget counts by more than this."""
MOST_STEPS = 8
FULL = 0.97
"""A planned file is refined until it takes at least this share of its budget (and at most all of
it).
"""
REFINEMENTS = 4
"""Files at most that are sized while a byte budget is refined."""
FLOORS_REACHED = "the floors of all groups were reached first"
"""Why a network may be larger than its budget."""


def score(
    context: TrainingContext,
    model: nn.Module,
    graph: ChannelGraph,
    training: Training,
    criterion: str,
    loss: Loss,
    score_batches: int = 8,
) -> scoring.Scores:
    """Scores of all groups; those of the first process, where several train together."""
    scores = _score(context, model, graph, training, criterion, loss, score_batches)
    distributed.agreed(scores, context.device)
    return scores


def _score(
    context: TrainingContext,
    model: nn.Module,
    graph: ChannelGraph,
    training: Training,
    criterion: str,
    loss: Loss,
    score_batches: int,
) -> scoring.Scores:
    if criterion in ("l1", "l2"):
        return scoring.magnitude(model, graph, 1 if criterion == "l1" else 2)
    if criterion == "bn":
        return scoring.batchnorm_scale(model, graph)
    if criterion == "random":
        return scoring.random(graph, context.seed)
    chosen = fit_settings(context, model, training, epochs=1)
    drawn = islice(batches(context.data, chosen, context.device, context.seed, 1), score_batches)
    return scoring.taylor(model, graph, loss, drawn)


def in_steps(context: Context, settings: PruneStage, state: State) -> StageResult:
    """Ask for as many steps as the way to the budget needs; none where nothing must be pruned."""
    if _nothing_planned(settings, state):
        return StageResult(state)
    model = state.need_model().to(context.device)
    graph = trace(model, context.example)
    state = with_frozen(context, state, model, graph)
    plan = _plan_of(context, settings, state, model, graph)
    ratios = [
        cost_now(model, graph, budget.price) / max(budget.limit, 1.0)
        for budget in budgets_of(model, graph, plan)
    ]
    factor = max(1.0, *ratios)
    steps = min(MOST_STEPS, max(1, math.ceil(math.log(factor) / math.log(LARGEST_STEP))))
    following = settings.model_copy(update={"steps": steps})
    return StageResult(replace(state, prune_plan=plan), follow=(following,))


def prune(context: Context, settings: PruneStep, state: State) -> StageResult:
    """One step: the channels that go, the repaired network, and its training."""
    if _nothing_planned(settings, state):
        return StageResult(state)
    model = state.need_model().to(context.device)
    graph = trace(model, context.example)
    state = with_frozen(context, state, model, graph)
    plan = state.prune_plan
    if settings.step == 1 or plan is None:
        plan = _plan_of(context, settings, state, model, graph)
    large = len(context.data.train) > LARGE_SPLIT
    short = settings.usual_epochs(None, large=large, small=None)
    chosen = fit_settings(context, model, settings, epochs=short)
    loss = learning_loss(context, state, chosen, settings.temperature, settings.alpha)
    scores = score(
        context, model, graph, settings, settings.criterion, loss, settings.score_batches
    )
    only = only_layers(graph, settings.layers)
    chooser = Chooser(model, graph, scores, plan, settings.scope, first_sizes(state), only)
    selection, small = cut_towards(context, chooser, settings.step, int(settings.steps))
    check(model, selection.keep, context.example)

    kept = {g.name: int(selection.keep[g].sum()) for g in graph.groups}
    widths = widths_after(state, graph.groups, kept)
    repaired(model, small.to(context.device), selection.keep, repair_images(context))
    at_cut = validation_accuracy(context, small)
    result = _trained_again(context, settings, small, loss, chosen)
    accuracy = validation_accuracy(context, small)

    name = f"prune {settings.step}of{settings.steps}"
    row = StageRow(name, accuracy, count(small), at_cut=at_cut)
    state = state.with_model(small.cpu()).with_history(name, result).with_row(row)
    unmet = not selection.met and settings.step == settings.steps
    return StageResult(
        replace(state, prune_plan=plan, widths=widths),
        missed=(FLOORS_REACHED,) if unmet else (),
    )


def _nothing_planned(settings: PruneStage, state: State) -> bool:
    """A plan was made, and the unpruned network meets it."""
    return settings.amount is None and state.plan is not None and not state.plan.prune


def _plan_of(
    context: Context, settings: PruneStage, state: State, model: nn.Module, graph: ChannelGraph
) -> SizePlan:
    """The plan's limits, or those of this stage's amount, counted from `model` before the first
    step.
    """
    if settings.amount is None and state.plan is not None:
        return state.plan
    amount = settings.amount or "50%"
    in_fp32 = partial(file_bytes, context, "fp32")
    return plan_for_amount(model, graph, amount, settings.floor, settings.round_to, in_fp32)


def _trained_again(
    context: Context, settings: PruneStep, small: nn.Module, loss: Loss, chosen: FitSettings
) -> FitResult | None:
    """Train the cut network in place for as many epochs as were chosen before the cut."""
    own = fit_settings(context, small, settings, epochs=chosen.epochs)
    if not own.epochs:
        return None
    text = f"prune {settings.step} of {settings.steps}"
    hooks = watched(context, text, settings.patience, keep_initial=True)
    return train_model(context, small, loss, own, hooks)


def repair_images(context: TrainingContext) -> Tensor:
    """The training images (N, C, H, W) that a cut network is repaired on."""
    pixels = context.data.train.pixels[:REPAIR_IMAGES]
    return context.data.normalised(pixels).to(context.device)


def cut_towards(
    context: Context, chooser: Chooser, step: int, steps: int
) -> tuple[Selection, nn.Module]:
    """Move towards the budgets by the same factor at each step; at the last, refine a byte budget
    with exact exports.
    """
    full = budgets_of(chooser.model, chooser.graph, chooser.plan)
    limits = []
    for budget in full:
        now = cost_now(chooser.model, chooser.graph, budget.price)
        share = min(1.0, budget.limit / now) ** (1 / (steps - step + 1))
        limits.append(Budget(budget.price, max(budget.limit, now * share)))
    selection = chooser.within(limits)
    small = shrink(chooser.model, selection.keep)
    if step < steps or chooser.plan.bytes is None:
        return selection, small
    return refine(context, chooser, full, selection, small)


@dataclass(frozen=True)
class Fitting:
    """A cut whose file, of `bytes`, is within the target."""

    bytes: int
    selection: Selection
    network: nn.Module


def refine(
    context: Context, chooser: Chooser, full: list[Budget], selection: Selection, small: nn.Module
) -> tuple[Selection, nn.Module]:
    """Choose again with a corrected byte budget until the exact file takes between `FULL` and all
    of the target.
    """
    sizes = Sizes(context, chooser.plan.formats[0])
    best = _fullest(sizes, chooser, full, selection, small)
    if best is not None and sizes.exact(best.network) != best.bytes:
        best = _fullest(sizes.exact, chooser, full, selection, small)
    return (best.selection, best.network) if best is not None else (selection, small)


def _fullest(
    sizes: FileBytes, chooser: Chooser, full: list[Budget], selection: Selection, small: nn.Module
) -> Fitting | None:
    """The largest cut found within the target, by `sizes`; None where none is."""
    target = chooser.plan.bytes or 0
    allowed = float(target)
    best: Fitting | None = None
    for _ in range(REFINEMENTS):
        size = sizes(small)
        if size <= target and (best is None or size > best.bytes):
            best = Fitting(size, selection, small)
        if FULL * target <= size <= target or not selection.met:
            break
        # the price is an estimate: correct it by how far the exact file was off
        allowed *= (target if size > target else (1 + FULL) / 2 * target) / size
        if size > target:
            allowed *= 0.995
        selection = chooser.within([Budget(full[0].price, allowed), *full[1:]])
        small = shrink(chooser.model, selection.keep)
    return best
