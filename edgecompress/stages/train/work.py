"""Where networks come from: building, initialising and training on the labels; the baseline."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from edgecompress.core.simplify import FoldedPool, find_pools, fold_pool, unfold_pool
from edgecompress.export import onnx as onnx_export
from edgecompress.measure.cost import cost
from edgecompress.models.own import runs_user_code
from edgecompress.models.registry import ModelSource, blank, build
from edgecompress.models.weights import load_weights
from edgecompress.run.context import Context, seed_everything
from edgecompress.run.state import Baseline, Network, State
from edgecompress.stages.common import input_spec, validation_row, watched
from edgecompress.stages.fields import FromScratch
from edgecompress.stages.training import fit_settings, train_model
from edgecompress.train.fit import FitResult, smoothed
from edgecompress.train.freeze import before_last
from edgecompress.train.init import has_norm, unit_variance_init


def train(context: Context, settings: FromScratch, state: State) -> State:
    """Train the recipe's network on the labels, from scratch or from given weights."""
    model, result = trained(context, settings, state.source)
    row = validation_row(context, "train" if result else "weights", model)
    state = replace(state, model=Network(model.cpu(), state.source))
    return with_baseline(context, state.with_history("train", result).with_row(row))


def trained(
    context: Context, settings: FromScratch, source: ModelSource
) -> tuple[nn.Module, FitResult | None]:
    """The network of `source` after the training on the labels; without epochs, as it is built."""
    model, folds = start(context, source, settings.weights)
    chosen = fit_settings(context, model, settings)
    if not chosen.epochs:
        return unfolded(model, folds), None
    if settings.train_last is not None:
        chosen = replace(chosen, frozen=before_last(model, settings.train_last))
    given = settings.weights is not None
    hooks = watched(context, f"train {source.name}", settings.patience, keep_initial=given)
    loss = smoothed(settings.label_smoothing)
    result = train_model(context, model, loss, chosen, hooks)
    return unfolded(model.cpu(), folds), result


def start(
    context: Context, source: ModelSource, weights: str | None
) -> tuple[nn.Module, list[FoldedPool]]:
    """The network to train, and the pools that were folded for training.

    The user's own network begins as their code returns it. One of ours without normalisation that
    classifies is initialised layer by layer to unit variance. Where a pool only copies values
    (VGG16 on 32×32), it is trained in the folded coordinates, which compute the same function with
    100 M weights less to move, and unfolded afterwards.
    """
    if weights is not None:
        return load_weights(source, weights), []
    own = runs_user_code(source.name)
    empty = None if own else blank(source)
    classifies = context.data.task.metric == "accuracy"
    if empty is None or has_norm(empty) or not classifies:
        seed_everything(context.seed)
        given = None if context.fresh is None else context.fresh.take(source, context.seed)
        return (build(source) if given is None else given), []
    folds = find_pools(empty, context.example)
    for fold in folds:
        empty = fold_pool(empty, fold)
    model = empty.to_empty(device="cpu")
    seed_everything(context.seed)
    unit_variance_init(model, context.data.normalised(context.data.train.pixels[:128]))
    return model, folds


def unfolded(model: nn.Module, folds: list[FoldedPool]) -> nn.Module:
    """`model`, perhaps cut since its pools were folded, with them as they were."""
    for fold in reversed(folds):
        width = model.get_submodule(fold.linear).get_parameter("weight").shape[1]
        channels = width // (fold.read[0] * fold.read[1])
        model = unfold_pool(model, replace(fold, channels=channels))
    return model


def with_baseline(context: Context, state: State) -> State:
    """The state with the costs of its model before anything is done to it.

    The model is the baseline, where the recipe brings no teacher.
    """
    model = state.need_model()
    state = replace(state, layers=cost(model, context.example).layers)
    if state.teacher_given:
        return state
    return replace(state, baseline=baseline_of(context, model, state.rows[-1].accuracy))


def baseline_of(context: Context, model: nn.Module, accuracy: float) -> Baseline:
    """What `model` costs; where the stage `measure` follows, its fp32 file is written."""
    costs = cost(model, context.example)
    baseline = Baseline(costs.params, costs.macs, accuracy)
    if all(stage.stage != "measure" for stage in context.recipe.stages):
        return baseline
    path = context.folder / "teacher.onnx"
    proto = onnx_export.to_onnx(model, context.example, input_spec(context).metadata())
    size = onnx_export.save(proto, path)
    return replace(baseline, bytes=size, onnx=str(path.relative_to(context.run.root)))
