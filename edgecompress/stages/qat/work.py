"""Fine-tuning on the grid that the file will have: int8, or weights of fewer bits."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import nn

from edgecompress.core.grid import LOW_BITS
from edgecompress.core.proof import trace
from edgecompress.formats import FORMATS, bits_by_layer, named
from edgecompress.methods.qat import QuantAware
from edgecompress.run.context import Context
from edgecompress.run.sections import QatSection
from edgecompress.run.state import LearnedGrid, StageRow, State
from edgecompress.stages.common import (
    count,
    fit_settings,
    learning_loss,
    reduces_range,
    train_model,
    validation_accuracy,
    watched,
)
from edgecompress.train.fit import FitResult
from edgecompress.train.settings import LARGE_SPLIT

if TYPE_CHECKING:
    from edgecompress.stages.qat import QatStage
    from edgecompress.stages.quantize import QuantizeStage

GRID_IMAGES = 256
"""Training images that the first ranges of activations come from."""
EPOCHS = 2
"""On the int8 grid, which changes little."""
LOW_EPOCHS_LARGE = 8
"""With fewer bits on large data, elsewhere as many as a training has; divided among the bits."""
INT8_RATE, LOW_RATE = 0.1, 1.0
"""Learning rates over the usual one."""
STEPS = ("steps.", 1.0)
"""Learned steps have the rate of the weights, and no weight decay."""


def form_of(context: Context, state: State) -> str:
    """The format that the file will have."""
    if state.plan is not None:
        return state.plan.formats[0]
    found = [stage for stage in context.recipe.stages if stage.stage == "quantize"]
    asked: QuantizeStage | None = found[0] if found else None  # type: ignore[assignment]
    return named("auto" if asked is None else asked.quantize)


def on_grid(context: Context, model: nn.Module, bits: Mapping[str, int]) -> QuantAware:
    """`model` on the int8 grid, or with fewer `bits` in some layers, its ranges from training
    images; on the context's device.
    """
    aware = QuantAware(model.to(context.device), reduce_range=reduces_range(context), bits=bits).to(
        context.device
    )
    pixels = context.data.train.pixels[:GRID_IMAGES].to(context.device)
    aware.calibrate(context.data.normalised(pixels))
    return aware


def qat(context: Context, settings: QatStage, state: State) -> State:
    """Fine-tune a copy of the network on the grid of its format; its scales are for the stage
    `quantize`, and its weights of less than 8 bits are where the file has them.
    """
    form = FORMATS[form_of(context, state)]
    if settings.only_low_bits and not form.is_low:
        return state
    model = copy.deepcopy(state.need_model()).to(context.device)
    original = validation_accuracy(context, model.eval())
    layers = [*trace(model.cpu(), context.example).output_shapes]
    final = bits_by_layer(form.name, layers)
    turns = [width for width in LOW_BITS if width >= form.bits] or [form.bits]

    aware = on_grid(context, model, final)
    before = validation_accuracy(context, aware.eval())
    for width in turns:
        bits = {name: width if one < 8 else 8 for name, one in final.items()}
        if width != form.bits:
            aware = on_grid(context, model, bits)
        result = _trained(context, settings, state, aware, len(turns))
        state = state.with_history("qat" if width == turns[-1] else f"qat {width} bits", result)
        if width != turns[-1]:
            aware.settle_()
            aware = on_grid(context, model, final)
    after = validation_accuracy(context, aware.eval())
    aware.cpu().settle_()

    scales = aware.scales()
    note = f"on the {form.name} grid; {before:.2%} before fine-tuning"
    state = replace(state.with_model(model), grid=LearnedGrid(scales, original, aware.bits))
    state = state.with_row(StageRow("qat", after, count(model), note=note))
    section: QatSection = {
        "scales": {name: list(pair) for name, pair in scales.items()},
        "original": original,
        "before": before,
        "after": after,
        "bits": aware.bits,
    }
    return state.with_section("qat", section)


def _trained(
    context: Context, settings: QatStage, state: State, aware: QuantAware, turns: int
) -> FitResult:
    """Train `aware` in place, for its share of the epochs of all `turns`."""
    low = bool(aware.bits)
    whole = fit_settings(context, aware.model, settings).epochs
    large = len(context.data.train) > LARGE_SPLIT
    default = (LOW_EPOCHS_LARGE if large else whole) if low else EPOCHS
    epochs = default if settings.epochs is None else settings.epochs
    given = settings.model_copy(update={"epochs": -(-epochs // turns)})
    chosen = fit_settings(context, aware.model, given)
    if settings.learning_rate is None:
        factor = LOW_RATE if low else INT8_RATE
        chosen = replace(chosen, learning_rate=chosen.learning_rate * factor)
    chosen = replace(chosen, faster=(STEPS,))
    loss = learning_loss(context, state, chosen, settings.temperature, settings.alpha)
    text = f"on the grid of {min(aware.bits.values(), default=8)} bits"
    hooks = watched(context, text, settings.patience, keep_initial=True)
    return train_model(context, aware, loss, chosen, hooks)
