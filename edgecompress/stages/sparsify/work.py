"""Zero the smallest weights in steps, and train those that are left."""

from __future__ import annotations

import copy
import time
from typing import TYPE_CHECKING

import torch
from torch import nn

from edgecompress.core.proof import trace
from edgecompress.errors import EdgecompressError
from edgecompress.methods.repair import repaired
from edgecompress.methods.sparsify import Held, Zeroed, mixing_weights, zero_smallest_, zeros
from edgecompress.run.context import Context
from edgecompress.run.sections import SparsifySection
from edgecompress.run.state import StageRow, State
from edgecompress.stages.common import count, learning_loss, validation_accuracy, watched
from edgecompress.stages.prune.work import repair_images
from edgecompress.stages.training import fit_settings, train_model
from edgecompress.train.settings import LARGE_SPLIT

if TYPE_CHECKING:
    from edgecompress.stages.sparsify import SparsifyStage

EPOCHS, EPOCHS_LARGE = 4, 2
"""After each step, on data of ordinary size and on large data."""


def sparsify(context: Context, settings: SparsifyStage, state: State) -> State:
    """The state with a copy of the network whose smallest weights are zero."""
    model = copy.deepcopy(state.need_model()).to(context.device)
    epochs = EPOCHS_LARGE if len(context.data.train) > LARGE_SPLIT else EPOCHS
    chosen = fit_settings(context, model, settings, epochs=epochs)
    loss = learning_loss(context, state, chosen, settings.temperature, settings.alpha)
    for step in range(1, settings.steps + 1):
        share = 1 - (1 - settings.share) ** (step / settings.steps)
        begun, before = time.perf_counter(), copy.deepcopy(model)
        zeroed = zero_smallest_(model, share, scope=settings.scope, layer_names=settings.layers)
        _check_alive(zeroed, share)
        _repair_(context, before, model)
        at_cut = validation_accuracy(context, model)
        held = Held(model)
        text = f"sparsify {step} of {settings.steps}"
        if chosen.epochs:
            hooks = watched(context, text, settings.patience, keep_initial=True)
            result = train_model(context, held, loss, chosen, hooks)
            state = state.with_history(text, result)
        held.settle_()
        accuracy = validation_accuracy(context, model)
        section = _section(model)
        note = f"{section['share']:.1%} of the weights are zero"
        row = StageRow(
            text,
            accuracy,
            count(model),
            wall_s=time.perf_counter() - begun,
            at_cut=at_cut,
            note=note,
        )
        state = state.with_row(row)
    return state.with_model(model.cpu()).with_section("sparsify", section)


def _section(model: nn.Module) -> SparsifySection:
    """The share of zeros among the weights of `model`, and of each layer."""
    weights = mixing_weights(model)
    counts = zeros(weights)
    return {
        "share": sum(counts.values()) / sum(weight.numel() for weight in weights.values()),
        "layers": {name: counts[name] / weights[name].numel() for name in counts},
    }


def _check_alive(zeroed: Zeroed, share: float) -> None:
    """Raises `EdgecompressError` for a layer without any weight: nothing passes it."""
    dead = [name for name, size in zeroed.size.items() if zeroed.zeros[name] == size]
    if dead:
        raise EdgecompressError(
            f"layer '{dead[0]}' would lose all its weights with {share:.1%} zeros over the "
            "network: give scope local, or a smaller amount"
        )


def _repair_(context: Context, before: nn.Module, model: nn.Module) -> None:
    """Give the channels of `model` the means and deviations that they had in `before`, in place:
    sums of fewer terms fade from layer to layer, as after a cut.
    """
    graph = trace(before, context.example)
    every = {group: torch.ones(group.size, dtype=torch.bool) for group in graph.groups}
    repaired(before, model, every, repair_images(context))
