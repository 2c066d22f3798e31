"""Fine-tuning on the int8 grid that ONNX Runtime will use."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from edgecompress.stages.qat import QatStage

CALIBRATION_IMAGES = 256
"""Training images that the first ranges of activations come from."""


def qat(context: Context, settings: QatStage, state: State) -> State:
    """Fine-tune a copy of the network on the int8 grid; its scales are for the stage `quantize`."""
    model = copy.deepcopy(state.need_model()).to(context.device)
    original = validation_accuracy(context, model.eval())
    aware = QuantAware(model, reduce_range=reduces_range(context)).to(context.device)
    pixels = context.data.train.pixels[:CALIBRATION_IMAGES].to(context.device)
    aware.calibrate(context.data.normalised(pixels))
    before = validation_accuracy(context, aware.eval())

    chosen = fit_settings(context, model, settings, epochs=2)
    if settings.learning_rate is None:
        chosen = replace(chosen, learning_rate=chosen.learning_rate / 10)
    loss = learning_loss(context, state, chosen, settings.temperature, settings.alpha)
    hooks = watched(context, "on the int8 grid", settings.patience, keep_initial=True)
    result = train_model(context, aware, loss, chosen, hooks)

    after = validation_accuracy(context, aware.eval())
    aware.cpu()
    scales = aware.scales()
    note = f"on the int8 grid; {before:.2%} before fine-tuning"
    state = replace(state.with_model(model), grid=LearnedGrid(scales, original))
    state = state.with_history("qat", result)
    state = state.with_row(StageRow("qat", after, count(model), note=note))
    section: QatSection = {
        "scales": {name: list(pair) for name, pair in scales.items()},
        "original": original,
        "before": before,
        "after": after,
    }
    return state.with_section("qat", section)
