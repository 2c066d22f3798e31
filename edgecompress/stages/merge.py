"""Stage `merge`: several networks become one of the same size."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgecompress.core import shrink, trace
from edgecompress.core.stack import stack, with_one_head
from edgecompress.data.images import stream
from edgecompress.data.joined import part_of
from edgecompress.measure.cost import cost
from edgecompress.methods.gates import Gated, lambdas, most_open, statistics
from edgecompress.methods.greedy import GreedySettings, identify, mimic, samples_within
from edgecompress.methods.merge import averaged, matched
from edgecompress.methods.repair import channel_statistics, repair_
from edgecompress.pipeline import Context, State
from edgecompress.prepare import check_parents
from edgecompress.settings import MergeStage
from edgecompress.stages.common import (
    count,
    fit_settings,
    validation_accuracy,
    watched,
    with_history,
    with_row,
)
from edgecompress.stages.gradual import fresh, seconds
from edgecompress.stages.prune import repair_images
from edgecompress.stages.teacher import described, start, unfolded
from edgecompress.train.batches import Batch
from edgecompress.train.fit import Loss, fit, smoothed
from edgecompress.train.history import EpochRow


def merge(context: Context, settings: MergeStage, state: State) -> State:
    """Merge the parents, fine-tune the result, and say how it stands beside the best of them."""
    if settings.train_parents is None:
        parents = check_parents(
            [Path(path) for path in settings.checkpoints],
            context.recipe,
            context.data,
            settings.heads,
        )
    else:
        state, parents = _trained(context, settings, state, settings.train_parents)
    separate, accuracies = settings.heads == "separate", []
    for number, parent in enumerate(parents, start=1):
        own = replace(context, data=part_of(context.data, number - 1)) if separate else context
        accuracies.append(validation_accuracy(own, parent))
        state = with_row(state, f"parent {number}", accuracies[-1], count(parent))
    parents = [parent.cpu() for parent in parents]
    if separate:  # what it is compared with: all of them, side by side
        best, name = stack(parents, context.example, heads="separate"), "its parents side by side"
        best_accuracy = validation_accuracy(context, best)
    else:
        number = max(range(len(parents)), key=lambda n: accuracies[n])
        best, name, best_accuracy = parents[number], "its best parent", accuracies[number]
    first = cost(best.cpu(), context.example)
    state = state.with_numbers(
        teacher=described(context, best, best_accuracy),
        layers=[asdict(row) for row in first.layers],
    )
    state = replace(state, teacher=best)
    state, model, told = _merged(context, settings, state, parents)
    state, model = finetuned(context, settings, state, model)
    accuracy = validation_accuracy(context, model)
    told |= {
        "method": settings.method,
        "heads": settings.heads,
        "parents": accuracies,
        "best_parent": best_accuracy,
        "validation_accuracy": accuracy,
    }
    numbers: dict[str, Any] = {"merge": told}
    if settings.require_better and accuracy < best_accuracy:
        numbers["not_better"] = (
            f"the merged network has {accuracy:.2%} on validation, {name} {best_accuracy:.2%}"
        )
    return replace(state, model=fresh(model)).with_numbers(**numbers)


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
        hooks, loss = watched(context, f"parent {n + 1}"), smoothed(settings.label_smoothing)
        result = fit(
            model.to(context.device),
            context.data,
            loss,
            chosen,
            seed=own.seed,
            device=context.device,
            hooks=hooks,
        )
        state = with_history(state, f"parent {n + 1}", result)
        parents.append(unfolded(result.model.cpu(), folds))
    return state, parents


def _merged(
    context: Context, settings: MergeStage, state: State, parents: list[nn.Module]
) -> tuple[State, nn.Module, dict[str, Any]]:
    """The merged network before fine-tuning, and what to tell of it."""
    if settings.method in ("average", "align"):
        return _baseline(context, settings, state, parents)
    merging = by_gates if settings.method == "gates" else greedily
    told: dict[str, Any] = {"gates": [], "steps": []}
    while len(parents) > 1:
        group = 2 if settings.hierarchical else len(parents)
        following = []
        for first in range(0, len(parents), group):
            last = group >= len(parents)
            level = settings if last else settings.model_copy(update={"width": 1.0})
            state, small, rows = merging(context, level, state, parents[first : first + group])
            following.append(small)
            told["gates"] += [{**row, "step": len(told["steps"]) + 1} for row in rows.pop("gates")]
            told["steps"].append(rows)
        parents = following
    return state, parents[0], told


def _called(settings: MergeStage, parents: list[nn.Module]) -> str:
    """What the wide network is of its parents."""
    return (
        f"{len(parents)} side by side"
        if settings.heads == "separate"
        else f"average of {len(parents)}"
    )


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
    return with_row(
        state, "one head", validation_accuracy(context, single), count(single), note=note
    ), single


def _baseline(
    context: Context, settings: MergeStage, state: State, parents: list[nn.Module]
) -> tuple[State, nn.Module, dict[str, Any]]:
    """The mean of the weights; a BatchNorm's statistics, and every layer's scale, are those of the
    first parent's again.
    """
    if settings.method == "align":
        graph = trace(parents[0], context.example)
        parents = [parents[0], *(matched(parents[0], parent, graph) for parent in parents[1:])]
    mean = averaged(parents)
    images = repair_images(context).cpu()
    repair_(mean, channel_statistics(parents[0], images), {}, images)
    state = with_row(state, settings.method, validation_accuracy(context, mean), count(mean))
    return state, mean, {}


def by_gates(
    context: Context, settings: MergeStage, state: State, parents: list[nn.Module]
) -> tuple[State, nn.Module, dict[str, Any]]:
    """One merging: the wide network, its gates, the cut."""
    wide = stack(parents, context.example, heads=settings.heads)
    stacked = validation_accuracy(context, wide)
    state = with_row(state, _called(settings, parents), stacked, count(wide))
    share = settings.width / len(parents)
    gated = Gated(
        wide,
        trace(wide, context.example),
        per=settings.draw,
        noise=settings.noise,
        seed=context.seed,
    ).to(context.device)
    chosen = replace(
        fit_settings(context, wide, settings), faster=(("log_alpha", settings.gate_rate),)
    )
    penalty = Penalty(gated, share, settings, chosen.epochs)
    hooks = replace(
        watched(context, "merge"), eligible=lambda _: False
    )  # gates settle at the end: the last epoch is the result
    log = hooks.on_epoch

    def on_epoch(row: EpochRow) -> None:
        penalty.epoch_done()
        if log is not None:
            log(row)

    hooks = replace(hooks, on_epoch=on_epoch)
    result = fit(
        gated, context.data, penalty, chosen, seed=context.seed, device=context.device, hooks=hooks
    )
    state = with_history(state, "merge", result)
    gated = gated.cpu().eval()
    before = validation_accuracy(context, gated)
    keep = most_open(gated.cpu().scores(), share)
    small = gated.cut(keep)
    after = validation_accuracy(context, small)
    state = with_row(
        state,
        "gates",
        before,
        count(wide),
        wall_s=seconds(result),
        note=f"L0 distance {penalty.last:.2e}",
    )
    state = with_row(
        state,
        "cut",
        after,
        count(small),
        note=f"{before - after:+.2%} lost at the cut" if after < before else "",
    )
    if before - after > 0.02:
        context.reporter.note(
            f"the cut cost {before - after:.1%} on validation: give more epochs, or a larger "
            "lambda_scale"
        )
    told = {
        "stacked": stacked,
        "gated": before,
        "cut": after,
        "l0_distance": penalty.last,
        "lambda": penalty.weights[-1],
        "gates": [asdict(row) for row in statistics(gated.scores(), keep)],
    }
    state, small = _one_head(context, state, small.cpu())
    return state, small, told


def greedily(
    context: Context, settings: MergeStage, state: State, parents: list[nn.Module]
) -> tuple[State, nn.Module, dict[str, Any]]:
    """One greedy merging: the channels that matter, from the output back, and a student that mimics
    them, from the input on.
    """
    wide = stack(parents, context.example, heads=settings.heads).to(context.device)
    stacked = validation_accuracy(context, wide)
    state = with_row(state, _called(settings, parents), stacked, count(wide))
    chosen, began, share = (
        fit_settings(context, wide, settings),
        time.perf_counter(),
        settings.width / len(parents),
    )
    limit = samples_within(wide, context.example.to(context.device))
    pixels = context.data.train.pixels[
        torch.randperm(len(context.data.train), generator=stream("greedy", context.seed))[:limit]
    ]
    inputs = context.data.normalised(pixels.to(context.device))
    weights = [
        settings.lambda_scale * w
        for w in lambdas(settings.lambda_schedule, chosen.epochs, settings.lambda_start)
    ]
    how = GreedySettings(
        share, weights, chosen.batch_size, chosen.learning_rate, settings.gate_rate, context.seed
    )
    graph = trace(wide, context.example)
    keep, openness = identify(wide, graph, inputs, how, context.reporter.step)
    cut = validation_accuracy(context, shrink(wide, keep).to(context.device))
    state = with_row(
        state, "cut", cut, count(shrink(wide, keep)), wall_s=time.perf_counter() - began
    )
    began = time.perf_counter()
    small, rows = mimic(wide, keep, inputs, how, context.reporter.step)
    after = validation_accuracy(context, small)
    state = with_row(
        state,
        "mimic",
        after,
        count(small),
        wall_s=time.perf_counter() - began,
        note=f"{len(inputs)} training images",
    )
    told = {
        "stacked": stacked,
        "cut": cut,
        "mimicked": after,
        "images": len(inputs),
        "mimic": [asdict(row) for row in rows],
        "gates": [asdict(row) for row in statistics(openness, keep)],
        "lambda": weights[-1],
    }
    state, small = _one_head(context, state, small.cpu())
    return state, small, told


class Penalty:
    """Cross-entropy + lambda * the distance of the gates' mean openness from the share, lambda by
    epoch.
    """

    def __init__(self, gated: Gated, share: float, settings: MergeStage, epochs: int) -> None:
        self.gated, self.share, self.base = gated, share, smoothed(settings.label_smoothing)
        self.weights = [
            settings.lambda_scale * w
            for w in lambdas(settings.lambda_schedule, max(1, epochs), settings.lambda_start)
        ]
        self.epoch, self.last = 0, float("nan")

    def __call__(self, logits: Tensor, batch: Batch) -> Tensor:
        """The loss of a batch."""
        return self.base(logits, batch) + self.weights[
            min(self.epoch, len(self.weights) - 1)
        ] * self.gated.distance(self.share)

    def epoch_done(self) -> None:
        """The next epoch has the next lambda."""
        self.epoch, self.last = self.epoch + 1, float(self.gated.distance(self.share).detach())


def finetuned(
    context: Context, settings: MergeStage, state: State, model: nn.Module
) -> tuple[State, nn.Module]:
    """The merged network, trained on; with no epochs, as it is."""
    chosen = fit_settings(context, model, settings)
    chosen = replace(
        chosen,
        epochs=chosen.epochs if settings.finetune_epochs is None else settings.finetune_epochs,
    )
    if not chosen.epochs:
        return state, model
    loss: Loss = smoothed(settings.label_smoothing)
    hooks = watched(context, "fine-tune", settings.patience)
    result = fit(
        model.to(context.device),
        context.data,
        loss,
        chosen,
        seed=context.seed + 1,
        device=context.device,
        hooks=hooks,
    )
    state = with_history(state, "fine-tune", result)
    accuracy = validation_accuracy(context, result.model)
    return with_row(
        state, "fine-tune", accuracy, count(result.model), wall_s=seconds(result)
    ), result.model.cpu()
