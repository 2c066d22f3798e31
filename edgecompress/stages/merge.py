"""Stage `merge`: several networks become one of the same size."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from edgecompress.core import trace
from edgecompress.core.stack import stack
from edgecompress.measure.cost import cost
from edgecompress.methods.gates import Gated, lambdas, most_open
from edgecompress.methods.merge import averaged, matched
from edgecompress.methods.repair import channel_statistics, repair_
from edgecompress.pipeline import Context, State, check_parents
from edgecompress.settings import MergeStage
from edgecompress.stages.common import count, fit_settings, validation_accuracy, watched, with_history, with_row
from edgecompress.stages.gradual import fresh, seconds
from edgecompress.stages.prune import repair_images
from edgecompress.stages.teacher import described
from edgecompress.train.batches import Batch
from edgecompress.train.fit import Loss, fit, smoothed
from edgecompress.train.history import EpochRow


def merge(context: Context, settings: MergeStage, state: State) -> State:
    """Merge the parents, fine-tune the result, and say how it stands beside the best of them."""
    parents = check_parents([Path(path) for path in settings.checkpoints], context.recipe, context.data)
    accuracies = []
    for number, parent in enumerate(parents, start=1):
        accuracies.append(validation_accuracy(context, parent))
        state = with_row(state, f"parent {number}", accuracies[-1], count(parent))
    best = max(range(len(parents)), key=lambda n: accuracies[n])
    first = cost(parents[best].cpu(), context.example)
    state = state.with_numbers(teacher=described(context, parents[best], accuracies[best]), layers=[asdict(row) for row in first.layers])
    state = replace(state, teacher=parents[best])
    state, model, told = _merged(context, settings, state, [p.cpu() for p in parents])
    state, model = finetuned(context, settings, state, model)
    accuracy = validation_accuracy(context, model)
    told |= {"method": settings.method, "parents": accuracies, "best_parent": accuracies[best], "validation_accuracy": accuracy}
    numbers: dict[str, Any] = {"merge": told}
    if settings.require_better and accuracy < accuracies[best]:
        numbers["not_better"] = f"the merged network has {accuracy:.2%} on validation, its best parent {accuracies[best]:.2%}"
    return replace(state, model=fresh(model)).with_numbers(**numbers)


def _merged(context: Context, settings: MergeStage, state: State, parents: list[nn.Module]) -> tuple[State, nn.Module, dict[str, Any]]:
    """The merged network before fine-tuning, and what to tell of it."""
    if settings.method != "gates":
        return _baseline(context, settings, state, parents)
    told: dict[str, Any] = {"gates": [], "steps": []}
    while len(parents) > 1:
        group = 2 if settings.hierarchical else len(parents)
        following = []
        for start in range(0, len(parents), group):
            last = group >= len(parents)
            level = settings if last else settings.model_copy(update={"width": 1.0})
            state, small, rows = by_gates(context, level, state, parents[start : start + group])
            following.append(small)
            told["gates"], told["steps"] = rows.pop("gates"), [*told["steps"], rows]
        parents = following
    return state, parents[0], told


def _baseline(context: Context, settings: MergeStage, state: State, parents: list[nn.Module]) -> tuple[State, nn.Module, dict[str, Any]]:
    """The mean of the weights; a BatchNorm's statistics, and every layer's scale, are those of the first parent's again."""
    if settings.method == "align":
        graph = trace(parents[0], context.example)
        parents = [parents[0], *(matched(parents[0], parent, graph) for parent in parents[1:])]
    mean = averaged(parents)
    images = repair_images(context).cpu()
    repair_(mean, channel_statistics(parents[0], images), {}, images)
    state = with_row(state, settings.method, validation_accuracy(context, mean), count(mean))
    return state, mean, {}


def by_gates(context: Context, settings: MergeStage, state: State, parents: list[nn.Module]) -> tuple[State, nn.Module, dict[str, Any]]:
    """One merging: the wide network, its gates, the cut."""
    wide = stack(parents, context.example)
    stacked = validation_accuracy(context, wide)
    state = with_row(state, f"average of {len(parents)}", stacked, count(wide))
    share = settings.width / len(parents)
    gated = Gated(wide, trace(wide, context.example), per=settings.draw, noise=settings.noise, seed=context.seed).to(context.device)
    chosen = replace(fit_settings(context, wide, settings), faster=(("log_alpha", settings.gate_rate),))
    penalty = Penalty(gated, share, settings, chosen.epochs)
    hooks = replace(watched(context, "merge"), eligible=lambda _: False)  # gates settle at the end: the last epoch is the result
    log = hooks.on_epoch

    def on_epoch(row: EpochRow) -> None:
        penalty.epoch_done()
        if log is not None:
            log(row)

    hooks = replace(hooks, on_epoch=on_epoch)
    result = fit(gated, context.data, penalty, chosen, seed=context.seed, device=context.device, hooks=hooks)
    state = with_history(state, "merge", result)
    gated = gated.cpu().eval()
    before = validation_accuracy(context, gated)
    keep = most_open(gated.cpu().scores(), share)
    small = gated.cut(keep)
    after = validation_accuracy(context, small)
    state = with_row(state, "gates", before, count(wide), wall_s=seconds(result), note=f"L0 distance {penalty.last:.2e}")
    state = with_row(state, "cut", after, count(small), note=f"{before - after:+.2%} lost at the cut" if after < before else "")
    if before - after > 0.02:
        context.reporter.note(f"the cut cost {before - after:.1%} on validation: give more epochs, or a larger lambda_scale")
    told = {
        "stacked": stacked, "gated": before, "cut": after, "l0_distance": penalty.last, "lambda": penalty.weights[-1],
        "gates": [asdict(row) for row in gated.statistics(keep)],
    }  # fmt: skip
    return state, small.cpu(), told


class Penalty:
    """Cross-entropy + lambda * the distance of the gates' mean openness from the share, lambda by epoch."""

    def __init__(self, gated: Gated, share: float, settings: MergeStage, epochs: int) -> None:
        self.gated, self.share, self.base = gated, share, smoothed(settings.label_smoothing)
        self.weights = [settings.lambda_scale * w for w in lambdas(settings.lambda_schedule, max(1, epochs), settings.lambda_start)]
        self.epoch, self.last = 0, float("nan")

    def __call__(self, logits: Tensor, batch: Batch) -> Tensor:
        """The loss of a batch."""
        return self.base(logits, batch) + self.weights[min(self.epoch, len(self.weights) - 1)] * self.gated.distance(self.share)

    def epoch_done(self) -> None:
        """The next epoch has the next lambda."""
        self.epoch, self.last = self.epoch + 1, float(self.gated.distance(self.share).detach())


def finetuned(context: Context, settings: MergeStage, state: State, model: nn.Module) -> tuple[State, nn.Module]:
    """The merged network, trained on; with no epochs, as it is."""
    chosen = fit_settings(context, model, settings)
    chosen = replace(chosen, epochs=chosen.epochs if settings.finetune_epochs is None else settings.finetune_epochs)
    if not chosen.epochs:
        return state, model
    loss: Loss = smoothed(settings.label_smoothing)
    hooks = watched(context, "fine-tune", settings.patience)
    result = fit(model.to(context.device), context.data, loss, chosen, seed=context.seed + 1, device=context.device, hooks=hooks)
    state = with_history(state, "fine-tune", result)
    accuracy = validation_accuracy(context, result.model)
    return with_row(state, "fine-tune", accuracy, count(result.model), wall_s=seconds(result)), result.model.cpu()
