"""Stages `train`, `load` and `teacher`: where networks come from."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgecompress import checkpoint
from edgecompress.core.simplify import FoldedPool, find_pools, fold_pool, unfold_pool
from edgecompress.export import onnx as onnx_export
from edgecompress.measure.cost import cost
from edgecompress.models.registry import ModelSource, build
from edgecompress.models.weights import load_weights
from edgecompress.pipeline import Context, State, seed_everything
from edgecompress.prepare import check_teacher
from edgecompress.settings import LoadStage, TeacherStage, TrainStage
from edgecompress.stages.common import (
    count,
    fit_settings,
    input_spec,
    validation_accuracy,
    watched,
    with_history,
    with_row,
)
from edgecompress.train.fit import FitResult, fit, smoothed
from edgecompress.train.freeze import before_last
from edgecompress.train.init import has_norm, unit_variance_init


def train(context: Context, settings: TrainStage, state: State) -> State:
    """Train the recipe's network on the labels, from scratch or from given weights."""
    model, result = trained(context, settings, state.source)
    accuracy = validation_accuracy(context, model)
    state = with_history(replace(state, model=model.cpu()), "train", result)
    return baseline(
        context, with_row(state, "train" if result else "weights", accuracy, count(model))
    )


def teacher(context: Context, settings: TeacherStage, state: State) -> State:
    """Bring the network to learn from: out of a checkpoint, or trained here on the labels."""
    mentor = check_teacher(settings, context.recipe, context.data)
    own, result = context.as_read_by(mentor), None
    if settings.checkpoint is not None:
        named = {settings.model, context.recipe.model}
        model, _ = checkpoint.load(
            Path(settings.checkpoint),
            allow_code=mentor.source.name if mentor.source.name in named else None,
        )
    else:
        model, result = trained(own, settings, mentor.source)
    accuracy = validation_accuracy(own, model)
    state = with_history(replace(state, teacher=model.cpu(), mentor=mentor), "teacher", result)
    state = with_row(state, f"teacher {mentor.source.name}", accuracy, count(model))
    return state.with_numbers(teacher=described(own, model, accuracy))


def trained(
    context: Context, settings: TrainStage | TeacherStage, source: ModelSource
) -> tuple[nn.Module, FitResult | None]:
    """The network of `source` after the training that `settings` ask for; without epochs, as it
    begins.
    """
    model, folds = start(context, source, settings.weights)
    model.to(context.device)
    result = None
    chosen = fit_settings(context, model, settings)
    if chosen.epochs:
        if settings.train_last is not None:
            chosen = replace(chosen, frozen=before_last(model, settings.train_last))
        hooks = watched(context, f"train {source.name}", settings.patience)
        loss = smoothed(settings.label_smoothing)
        result = fit(
            model, context.data, loss, chosen, seed=context.seed, device=context.device, hooks=hooks
        )
    return unfolded(model.cpu(), folds), result


def unfolded(model: nn.Module, folds: list[FoldedPool]) -> nn.Module:
    """`model`, perhaps cut since its pools were folded, with them as they were."""
    for fold in reversed(folds):
        width = model.get_submodule(fold.linear).get_parameter("weight").shape[1]
        model = unfold_pool(model, replace(fold, channels=width // (fold.read[0] * fold.read[1])))
    return model


def start(
    context: Context, source: ModelSource, weights: str | None
) -> tuple[nn.Module, list[FoldedPool]]:
    """The network to train, and the pools that were folded for training.

    A plain network (no normalisation) that classifies is initialised layer by layer to unit
    variance. Where a pool only copies values (VGG16 on 32×32), it is trained in the folded
    coordinates, which compute the same function with 100 M weights less to move, and unfolded
    afterwards.
    """
    if weights is not None:
        return load_weights(source, weights), []
    with torch.device("meta"):
        blank = build(source)
    plain = (
        not has_norm(blank)
        and all(p.is_meta for p in blank.parameters())
        and context.data.task.metric == "accuracy"
    )
    if not plain:
        seed_everything(context.seed)
        return build(source), []
    folds = find_pools(blank, context.example)
    for fold in folds:
        blank = fold_pool(blank, fold)
    model = blank.to_empty(device="cpu")
    seed_everything(context.seed)
    unit_variance_init(model, context.data.normalised(context.data.train.pixels[:128]))
    return model, folds


def load(context: Context, settings: LoadStage, state: State) -> State:
    """Take the network of a checkpoint."""
    model, manifest = checkpoint.load(Path(settings.checkpoint), allow_code=context.recipe.model)
    accuracy = validation_accuracy(context, model)
    model.cpu()
    state = replace(state, model=model, source=manifest.model)
    return baseline(context, with_row(state, "load", accuracy, count(model)))


def baseline(context: Context, state: State) -> State:
    """Note what the network costs before anything is done to it. It is the teacher, where the
    recipe brings no other.
    """
    model = state.need_model()
    state = state.with_numbers(layers=[asdict(row) for row in cost(model, context.example).layers])
    if state.mentor is not None:
        return state
    return state.with_numbers(teacher=described(context, model, state.rows[-1]["accuracy"]))


def described(context: Context, model: nn.Module, accuracy: float) -> dict[str, Any]:
    """What `result.json` says of a teacher; where the stage `measure` follows, its fp32 ONNX is
    written.
    """
    costs = cost(model, context.example)
    found: dict[str, Any] = {
        "params": costs.params,
        "macs": costs.macs,
        "validation_accuracy": accuracy,
    }
    if any(stage.stage == "measure" for stage in context.recipe.stages):
        path = context.folder / "teacher.onnx"
        proto = onnx_export.to_onnx(model, context.example, input_spec(context).metadata())
        found |= {
            "bytes": onnx_export.save(proto, path),
            "onnx": str(path.relative_to(context.run.root)),
        }
    return found
