"""Stages `train` and `load`: where a network comes from."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import nn

from edgecompress import checkpoint
from edgecompress.core.simplify import FoldedPool, find_pools, fold_pool, unfold_pool
from edgecompress.export import onnx as onnx_export
from edgecompress.measure.cost import cost
from edgecompress.models.registry import ModelSource, build
from edgecompress.models.weights import load_weights
from edgecompress.pipeline import Context, State, seed_everything
from edgecompress.recipe import LoadStage, TrainStage
from edgecompress.stages.common import count, fit_settings, input_spec, validation_accuracy, with_history, with_row
from edgecompress.train.fit import Hooks, fit, smoothed
from edgecompress.train.init import has_norm, unit_variance_init


def train(context: Context, settings: TrainStage, state: State) -> State:
    """Train the recipe's network on the labels, from scratch or from given weights."""
    model, folds = start(context, state.source, settings.weights)
    model.to(context.device)
    result = None
    chosen = fit_settings(context, model, settings)
    if chosen.epochs:
        on_step = context.progress(f"train {state.source.name}")
        loss = smoothed(settings.label_smoothing)
        result = fit(model, context.data, loss, chosen, seed=context.seed, device=context.device, hooks=Hooks(on_step))
    accuracy = validation_accuracy(context, model)
    model.cpu()
    for fold in reversed(folds):
        model = unfold_pool(model, fold)
    state = with_history(replace(state, model=model), "train", result)
    name = "train" if chosen.epochs else "weights"
    return baseline(context, with_row(state, name, accuracy, count(model)))


def start(context: Context, source: ModelSource, weights: str | None) -> tuple[nn.Module, list[FoldedPool]]:
    """The network to train, and the pools that were folded for training.

    A plain network (no normalisation) is initialised layer by layer to unit variance. Where a pool only copies values (VGG16 on 32×32),
    it is trained in the folded coordinates, which compute the same function with 100 M weights less to move, and unfolded afterwards.
    """
    if weights is not None:
        return load_weights(source, weights), []
    with torch.device("meta"):
        blank = build(source)
    plain = not has_norm(blank) and all(p.is_meta for p in blank.parameters())
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
    """Note what the network costs before anything is done to it, and where `measure` follows, write its fp32 ONNX."""
    model = state.need_model()
    costs = cost(model, context.example)
    teacher = {"params": costs.params, "macs": costs.macs, "validation_accuracy": state.rows[-1]["accuracy"]}
    if any(stage.stage == "measure" for stage in context.recipe.stages):
        path = context.folder / "teacher.onnx"
        proto = onnx_export.to_onnx(model, context.example, input_spec(context).metadata())
        teacher |= {"bytes": onnx_export.save(proto, path), "onnx": str(path.relative_to(context.run.root))}
    return state.with_numbers(teacher=teacher, layers=[asdict(row) for row in costs.layers])
