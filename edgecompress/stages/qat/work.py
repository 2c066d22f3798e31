"""Fine-tuning on the grid that the file will have: int8, or weights of fewer bits."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import nn

from edgecompress.core.grid import LOW_BITS
from edgecompress.core.proof import trace
from edgecompress.export import lean
from edgecompress.export import onnx as onnx_export
from edgecompress.export.calibration import Calibrated, calibrate
from edgecompress.export.quantize import quantized
from edgecompress.formats import FORMATS, bits_by_layer, named
from edgecompress.methods.bits import assigned, output_errors
from edgecompress.methods.qat import QuantAware
from edgecompress.run.context import Context
from edgecompress.run.sections import QatSection
from edgecompress.run.state import LearnedGrid, StageRow, State
from edgecompress.stages.common import (
    arrays,
    count,
    fp32_file,
    learning_loss,
    reduces_range,
    validation_accuracy,
    watched,
)
from edgecompress.stages.scoring import on_validation
from edgecompress.stages.training import fit_settings, train_model
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
REFINEMENTS = 4
"""Files that are made at most, while mixed bits are fitted to a target."""
STEPS = ("steps.", 1.0)
"""Learned steps have the rate of the weights, and no weight decay."""


def form_of(context: Context, state: State) -> str | None:
    """The format of integers that the file will have; None where it has none."""
    if state.plan is not None:
        integers = [form for form in state.plan.formats if FORMATS[form].is_integer]
        return integers[-1] if integers else None
    stages = [stage for stage in context.recipe.stages if stage.stage == "quantize"]
    asked: QuantizeStage | None = stages[0] if stages else None  # type: ignore[assignment]
    form = named("auto" if asked is None else asked.quantize)
    return form if FORMATS[form].is_integer else None


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
    name = form_of(context, state)
    if name is None or (settings.only_low_bits and not FORMATS[name].is_low):
        return state
    form = FORMATS[name]
    model = copy.deepcopy(state.need_model()).to(context.device)
    original = validation_accuracy(context, model.eval())
    final = _final_bits(context, state, model.cpu(), form.name)
    least = min(final.values(), default=8)
    turns = [width for width in LOW_BITS if width >= least] or [least]

    aware = on_grid(context, model, final)
    before = validation_accuracy(context, aware.eval())
    for width in turns:
        aware = on_grid(context, model, {layer: max(one, width) for layer, one in final.items()})
        result = _trained(context, settings, state, aware, turns.index(width), len(turns))
        state = state.with_history("qat" if width == turns[-1] else f"qat {width} bits", result)
    after = validation_accuracy(context, aware.eval())
    aware.cpu().settle_()

    scales = aware.scales()
    first = on_validation(context.data, before)
    note = f"on the {form.name} grid; {first} before fine-tuning"
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


def _final_bits(context: Context, state: State, model: nn.Module, form: str) -> dict[str, int]:
    """The bits of each layer; mixed ones such that the file takes its target, or as many bytes as
    with 4 bits.
    """
    layers = [*trace(model, context.example).output_shapes]
    usual = bits_by_layer(form, layers)
    if form != "mixed":
        return usual
    counts = {name: model.get_submodule(name).get_parameter("weight").numel() for name in layers}
    budget = sum(counts[name] * width / 8 for name, width in usual.items())
    limit = None if state.plan is None else state.plan.bytes
    calibrated = None if limit is None else _calibrated(context, model)
    if limit is not None and calibrated is not None:
        budget += limit - _bytes_with(context, calibrated, usual)
    pixels = context.data.train.pixels[:GRID_IMAGES]
    errors = output_errors(model.cpu(), layers, context.data.normalised(pixels))
    bits = assigned(errors, counts, budget)
    for _ in range(REFINEMENTS):  # scales and biases of 8 bits take more bytes, too
        size = 0 if calibrated is None else _bytes_with(context, calibrated, bits)
        if limit is None or size <= limit or set(bits.values()) == {2}:
            break
        budget -= 1.1 * (size - limit)
        bits = assigned(errors, counts, budget)
    chosen = Counter(bits.values())
    text = ", ".join(f"{count} of {width}" for width, count in sorted(chosen.items()))
    context.reporter.note(f"mixed bits: layers {text}")
    return bits


def _calibrated(context: Context, model: nn.Module) -> Calibrated:
    """The fp32 file of `model`, roughly calibrated: its bytes count."""
    context.folder.mkdir(parents=True, exist_ok=True)
    path = context.folder / "mixed-fp32.onnx"
    try:
        onnx_export.save(fp32_file(context, model.cpu()), path)
        return calibrate(path, arrays(context, context.data.train, 8))
    finally:
        path.unlink(missing_ok=True)


def _bytes_with(context: Context, calibrated: Calibrated, bits: Mapping[str, int]) -> int:
    """Bytes of the file with these bits, whatever a training does to its values."""
    proto = quantized(calibrated, reduce_range=reduces_range(context), bits=bits)
    return int(lean.shipped(proto, certain=True).proto.ByteSize())


def _trained(
    context: Context,
    settings: QatStage,
    state: State,
    aware: QuantAware,
    turn: int,
    turns: int,
) -> FitResult:
    """Train `aware` in place in `turn` (from 0), for its share of the epochs of all `turns`."""
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
    chosen = replace(chosen, faster=(STEPS,), elastic=settings.epochs is None)
    loss = learning_loss(context, state, chosen, settings.temperature, settings.alpha)
    text = f"on the grid of {min(aware.bits.values(), default=8)} bits"
    hooks = watched(context, text, settings.patience, keep_initial=True)
    return train_model(context, aware, loss, chosen, hooks, share=1 / (turns - turn))
