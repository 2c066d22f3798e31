"""Several networks become one: the wide network, its gates or its greedy choice, the cut."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edgecompress.core import shrink
from edgecompress.core.proof import trace
from edgecompress.core.stack import stack, with_one_head
from edgecompress.data.images import stream
from edgecompress.data.joined import part_of
from edgecompress.measure.cost import cost
from edgecompress.methods.gates import (
    SOURCE_RATE,
    GroupStatistics,
    most_open,
    statistics,
)
from edgecompress.methods.greedy import GreedySettings, identify, mimic, samples_within
from edgecompress.methods.merge import averaged, matched
from edgecompress.methods.repair import channel_statistics, repair_
from edgecompress.proportions import apart
from edgecompress.run.context import Context
from edgecompress.run.sections import GateRow, MergeSection, MergeStep, MergeSteps
from edgecompress.run.stage import StageResult
from edgecompress.run.state import Network, StageRow, State
from edgecompress.stages.checkpoints import check_parents
from edgecompress.stages.common import (
    against,
    count,
    validation_accuracy,
    validation_row,
    watched,
)
from edgecompress.stages.gradual.work import seconds
from edgecompress.stages.merge.gating import train_gates, weights_of_l0
from edgecompress.stages.merge.selection import decision, remarks, selection
from edgecompress.stages.prune.work import repair_images
from edgecompress.stages.scoring import on_validation
from edgecompress.stages.train.work import baseline_of, start, unfolded
from edgecompress.stages.training import fit_settings, train_model
from edgecompress.train.fit import smoothed
from edgecompress.train.statistics import reestimate_

if TYPE_CHECKING:
    from edgecompress.stages.merge import MergeStage

LARGE_LOSS = 0.02
"""Accuracy lost at a cut, absolute, from which on a note says what may help."""


@dataclass(frozen=True)
class Best:
    """What the merged network is compared with: the best parent, or all of them side by side."""

    module: nn.Module
    name: str
    accuracy: float


@dataclass(frozen=True)
class Merged:
    """One merging: the state with its rows, the network, and what the section has of it."""

    state: State
    module: nn.Module
    gates: tuple[GroupStatistics, ...]
    facts: MergeStep


def merge(context: Context, settings: MergeStage, state: State) -> StageResult:
    """Merge the parents, fine-tune the result, and compare it with the best of them."""
    state, parents = _parents(context, settings, state)
    state, best = _best_of(context, settings, state, parents)
    state = replace(
        state,
        teacher=Network(best.module, state.source),
        baseline=baseline_of(context, best.module, best.accuracy),
        layers=cost(best.module.cpu(), context.example).layers,
    )
    state, model, steps = _merged(context, settings, state, parents)
    state, model = finetuned(context, settings, state, model)
    accuracy = validation_accuracy(context, model)
    section: MergeSection = {
        **steps,
        "method": settings.method,
        "heads": settings.heads,
        "parents": [row.accuracy for row in state.rows if row.name.startswith("parent ")],
        "best_parent": best.accuracy,
        "validation_accuracy": accuracy,
    }
    missed: tuple[str, ...] = ()
    if settings.require_better and accuracy < best.accuracy:
        own, others = (on_validation(context.data, one) for one in (accuracy, best.accuracy))
        pair = against(context, Network(best.module, state.source), model)
        by = "" if pair is None else f": {apart(pair.difference, pair.interval)}"
        missed = (f"the merged network has {own} on validation, {best.name} {others}{by}",)
    state = replace(state, model=Network(model.cpu(), state.source))
    return StageResult(state.with_section("merge", section), missed=missed)


def _parents(context: Context, settings: MergeStage, state: State) -> tuple[State, list[nn.Module]]:
    """The networks to merge, and the state with a row for each."""
    if settings.train_parents is None:
        files = list(settings.checkpoint_files())
        parents = check_parents(files, context.recipe, context.data, settings.heads)
    else:
        state, parents = _trained(context, settings, state, settings.train_parents)
    for number, parent in enumerate(parents, start=1):
        own = context
        if settings.heads == "separate":
            own = replace(context, data=part_of(context.data, number - 1))
        state = state.with_row(validation_row(own, f"parent {number}", parent))
    return state, [parent.cpu() for parent in parents]


def _best_of(
    context: Context, settings: MergeStage, state: State, parents: list[nn.Module]
) -> tuple[State, Best]:
    if settings.heads == "separate":
        beside = stack(parents, context.example, heads="separate")
        accuracy = validation_accuracy(context, beside)
        return state, Best(beside, "its parents side by side", accuracy)
    rows = state.rows[-len(parents) :]
    number = max(range(len(parents)), key=lambda n: rows[n].accuracy)
    return state, Best(parents[number], "its best parent", rows[number].accuracy)


def _trained(
    context: Context, settings: MergeStage, state: State, number: int
) -> tuple[State, list[nn.Module]]:
    """`number` networks of the recipe's kind, trained on the labels from seeds of their own."""
    parents = []
    for n in range(number):
        own = replace(context, seed=context.seed + 10 * (n + 1))
        model, folds = start(own, state.source, None)
        chosen = fit_settings(context, model, settings)
        chosen = replace(chosen, epochs=settings.parent_epochs or chosen.epochs)
        loss = smoothed(settings.label_smoothing)
        hooks = watched(context, f"parent {n + 1}")
        result = train_model(own, model, loss, chosen, hooks)
        state = state.with_history(f"parent {n + 1}", result)
        parents.append(unfolded(result.model.cpu(), folds))
    return state, parents


def _merged(
    context: Context, settings: MergeStage, state: State, parents: list[nn.Module]
) -> tuple[State, nn.Module, MergeSteps]:
    """The merged network before fine-tuning, and its steps."""
    if settings.method in ("average", "align"):
        state, mean = _baseline(context, settings, state, parents)
        return state, mean, {}
    merging = by_gates if settings.method == "gates" else greedily
    gates: list[GateRow] = []
    steps: list[MergeStep] = []
    while len(parents) > 1:
        group = 2 if settings.hierarchical else len(parents)
        last = group >= len(parents)
        level = settings if last else settings.model_copy(update={"width": 1.0})
        following = []
        for first in range(0, len(parents), group):
            merged = merging(context, level, state, parents[first : first + group])
            state, student = merged.state, merged.module
            if not last:  # what the next level merges has recovered from its own cut
                text = f"fine-tune {len(steps) + 1}"
                state, student = finetuned(context, settings, state, student, text)
            following.append(student)
            gates += [_gate_row(row, len(steps) + 1) for row in merged.gates]
            steps.append(merged.facts)
        parents = following
    return state, parents[0], {"gates": gates, "steps": steps}


def _gate_row(row: GroupStatistics, step: int) -> GateRow:
    return {
        "group": row.group,
        "size": row.size,
        "kept": row.kept,
        "mean_open": row.mean_open,
        "likely_open": row.likely_open,
        "entropy": row.entropy,
        "agreement": row.agreement,
        "step": step,
    }


def _wide_name(settings: MergeStage, parents: list[nn.Module]) -> str:
    """The row of the wide network."""
    if settings.heads == "separate":
        return f"{len(parents)} side by side"
    return f"average of {len(parents)}"


def _one_head(context: Context, state: State, model: nn.Module) -> tuple[State, nn.Module]:
    """The cut network as one of the parents' own kind, where its outputs were averaged behind
    it.
    """
    single = with_one_head(model, context.example)
    if single is model:
        return state, model
    note = (
        "the parents' last layers became their mean, which changes outputs: something after "
        "them is not affine"
    )
    row = replace(validation_row(context, "one head", single), note=note)
    return state.with_row(row), single


def _baseline(
    context: Context, settings: MergeStage, state: State, parents: list[nn.Module]
) -> tuple[State, nn.Module]:
    """The mean of the weights; a BatchNorm's statistics, and every layer's scale, are those of the
    first parent's again.
    """
    if settings.method == "align":
        graph = trace(parents[0], context.example)
        parents = [parents[0], *(matched(parents[0], parent, graph) for parent in parents[1:])]
    mean = averaged(parents)
    images = repair_images(context).cpu()
    repair_(mean, channel_statistics(parents[0], images), {}, images)
    return state.with_row(validation_row(context, settings.method, mean)), mean


def by_gates(
    context: Context, settings: MergeStage, state: State, parents: list[nn.Module]
) -> Merged:
    """One merging: the wide network, its gates, the cut."""
    wide = stack(parents, context.example, heads=settings.heads)
    stacked = validation_row(context, _wide_name(settings, parents), wide)
    share = settings.width / len(parents)
    gated, penalty, result = train_gates(context, settings, wide, share)
    state = state.with_row(stacked).with_history("merge", result)

    before = validation_accuracy(context, gated)
    keep = most_open(gated.cpu().scores(), share)
    small = gated.cut(keep).to(context.device)
    reestimate_(small, context.data, context.device)
    after = validation_accuracy(context, small)
    lost = before - after
    distance = f"L0 distance {penalty.last:.2e}"
    state = state.with_row(
        StageRow("gates", before, count(wide), wall_s=seconds(result), note=distance)
    )
    note = f"{lost:+.2%} lost at the cut" if lost > 0 else ""
    state = state.with_row(StageRow("cut", after, count(small), note=note))
    if lost > LARGE_LOSS:
        context.reporter.note(
            f"the cut cost {lost:.1%} on validation: give more epochs, or a larger lambda_scale"
        )
    rows = tuple(statistics(gated.scores(), keep))
    facts: MergeStep = {
        "stacked": stacked.accuracy,
        "gated": before,
        "cut": after,
        "l0_distance": penalty.last,
        "lambda": penalty.weights[-1],
        "selection": selection(context, settings, gated.folded(), gated.graph, share, small),
        **decision(rows),
    }
    for remark in remarks(facts):
        context.reporter.note(remark)
    state, small = _one_head(context, state, small.cpu())
    return Merged(state, small, rows, facts)


def greedily(
    context: Context, settings: MergeStage, state: State, parents: list[nn.Module]
) -> Merged:
    """One greedy merging: the channels that matter, from the output back, and a student that mimics
    them, from the input on.
    """
    wide = stack(parents, context.example, heads=settings.heads).to(context.device)
    stacked = validation_row(context, _wide_name(settings, parents), wide)
    inputs = _greedy_inputs(context, wide)
    how = _greedy_settings(context, settings, wide, settings.width / len(parents))
    began = time.perf_counter()
    keep, openness = identify(
        wide, trace(wide, context.example), inputs, how, context.reporter.step
    )
    alone = shrink(wide, keep)
    reestimate_(alone, context.data, context.device)
    cut = validation_row(context, "cut", alone)
    cut = replace(cut, wall_s=time.perf_counter() - began)

    began = time.perf_counter()
    small, rows = mimic(wide, keep, inputs, how, context.reporter.step)
    reestimate_(small, context.data, context.device)
    mimicked = validation_row(context, "mimic", small)
    note = f"{len(inputs)} training images"
    mimicked = replace(mimicked, wall_s=time.perf_counter() - began, note=note)
    state = state.with_row(stacked).with_row(cut).with_row(mimicked)
    facts: MergeStep = {
        "stacked": stacked.accuracy,
        "cut": cut.accuracy,
        "mimicked": mimicked.accuracy,
        "images": len(inputs),
        "mimic": [{"layer": r.layer, "before": r.before, "after": r.after} for r in rows],
        "lambda": how.lambdas[-1],
    }
    gates = tuple(statistics(openness, keep))
    state, small = _one_head(context, state, small.cpu())
    return Merged(state, small, gates, facts)


def _greedy_inputs(context: Context, wide: nn.Module) -> Tensor:
    """As many training images (N, C, H, W) as greedy merging can keep the activations of."""
    limit = samples_within(wide, context.example.to(context.device))
    order = torch.randperm(len(context.data.train), generator=stream("greedy", context.seed))
    pixels = context.data.train.pixels[order[:limit]]
    return context.data.normalised(pixels.to(context.device))


def _greedy_settings(
    context: Context, settings: MergeStage, wide: nn.Module, share: float
) -> GreedySettings:
    chosen = fit_settings(context, wide, settings)
    if settings.lambda_schedule == "fitted":
        settings = settings.model_copy(update={"lambda_schedule": "source"})
    return GreedySettings(
        share,
        weights_of_l0(settings, chosen.epochs),
        chosen.batch_size,
        chosen.learning_rate,
        settings.gate_rate or SOURCE_RATE,
        context.seed,
    )


def finetuned(
    context: Context,
    settings: MergeStage,
    state: State,
    model: nn.Module,
    text: str = "fine-tune",
) -> tuple[State, nn.Module]:
    """The merged network, trained further; with no epochs, as it is. `text` is the name of its row
    and of its curve.
    """
    chosen = fit_settings(context, model, settings)
    if settings.finetune_epochs is not None:
        chosen = replace(chosen, epochs=settings.finetune_epochs)
    if not chosen.epochs:
        return state, model
    loss = smoothed(settings.label_smoothing)
    hooks = watched(context, text, settings.patience, keep_initial=True)
    result = train_model(context, model, loss, chosen, hooks, seed=context.seed + 1)
    row = replace(validation_row(context, text, result.model), wall_s=seconds(result))
    state = state.with_history(text, result).with_row(row)
    return state, result.model.cpu()
