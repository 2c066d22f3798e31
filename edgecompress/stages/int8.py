"""The int8 file of a network: its calibration, the layers that cost most accuracy, and those that
stay in float for it.

Stage `qat`: the fine-tuning on the int8 grid that may come before it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from edgecompress.export import onnx as onnx_export
from edgecompress.export import quantize as quantizer
from edgecompress.export.quantize import Calibrated
from edgecompress.measure import runtime
from edgecompress.measure.machine import has_int8_dot
from edgecompress.measure.runtime import Array
from edgecompress.methods.qat import QuantAware
from edgecompress.pipeline import Context, State
from edgecompress.settings import QatStage, QuantizeStage
from edgecompress.stages.common import (
    arrays,
    count,
    file_accuracy,
    fit_settings,
    learning_loss,
    validation_accuracy,
    watched,
    with_history,
    with_row,
)
from edgecompress.train.fit import fit

TABLE_IMAGES = 1000
"""Validation images on which each layer is quantized alone."""
AGREEMENT = 0.98
"""Share of validation images on which the int8 file must say what the network said on its grid, for
its scales to be taken.
"""


def qat(context: Context, settings: QatStage, state: State) -> State:
    """Fine-tune the network on the int8 grid; its scales are handed to the stage `quantize`."""
    model = state.need_model().to(context.device)
    original = validation_accuracy(context, model.eval())
    aware = QuantAware(model, reduce_range=not has_int8_dot()).to(context.device)
    images = context.data.normalised(context.data.train.pixels[:256].to(context.device))
    aware.calibrate(images)
    before = validation_accuracy(context, aware.eval())
    chosen = fit_settings(context, model, settings, epochs=2)
    if settings.learning_rate is None:
        chosen = replace(chosen, learning_rate=chosen.learning_rate / 10)
    loss = learning_loss(context, state, settings, chosen)
    hooks = watched(context, "on the int8 grid", settings.patience)
    result = fit(
        aware, context.data, loss, chosen, seed=context.seed, device=context.device, hooks=hooks
    )
    state = with_history(replace(state, model=model.cpu()), "qat", result)
    after = validation_accuracy(context, aware.eval())
    state = state.with_numbers(
        qat={
            "scales": {k: list(v) for k, v in aware.scales().items()},
            "original": original,
            "before": before,
            "after": after,
        }
    )
    aware.cpu()
    return with_row(
        state, "qat", after, count(model), note=f"on the int8 grid; {before:.2%} before fine-tuning"
    )


def make_int8(
    context: Context, settings: QuantizeStage, state: State, fp32: Path
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """The int8 file of the network at `fp32`, and what to tell of it: the table of sensitivity,
    what stayed in float, how QAT agreed.
    """
    batches = arrays(context, context.data.train, settings.calibration_images)
    calibrated = quantizer.calibrate(fp32, batches, settings.method)
    told: dict[str, Any] = {}
    scales, proto = None, quantizer.quantized(calibrated)
    if "qat" in state.numbers:
        wanted = {
            name: (float(scale), int(zero))
            for name, (scale, zero) in state.numbers["qat"]["scales"].items()
        }
        learned = quantizer.quantized(calibrated, scales=wanted)
        told["qat"] = _agreement(context, state, learned, wanted)
        if told["qat"]["top1_agreement"] >= AGREEMENT and _score(context, learned) >= _score(
            context, proto
        ):
            scales, proto, told["qat"]["used"] = wanted, learned, True
    if settings.max_drop is None and not settings.sensitivity:
        return proto, told
    told["sensitivity"] = sensitivity(context, calibrated, fp32)
    if settings.max_drop is not None:
        least = file_accuracy(context, fp32, context.data.validation)
        least = (
            max(least, state.numbers.get("qat", {}).get("original", 0.0)) - settings.max_drop
        )  # what tuning lost is lost, too
        exclude: list[str] = []
        for row in told["sensitivity"]:
            if _score(context, proto) >= least - 1e-9:
                break
            exclude.append(row["layer"])
            kept = (
                None
                if scales is None
                else {name: pair for name, pair in scales.items() if name not in exclude}
            )
            proto = quantizer.quantized(calibrated, exclude=exclude, scales=kept)
        told["left_in_float"] = exclude
        short = least - _score(context, proto)
        if short > 1e-9:
            told["drop_unmet"] = (
                f"int8 loses {short + settings.max_drop:.2%} on validation, more than "
                f"{settings.max_drop:.2%}"
            )
    return proto, told


def sensitivity(context: Context, calibrated: Calibrated, fp32: Path) -> list[dict[str, Any]]:
    """A row for each layer quantized alone: the score it costs on validation, and the relative
    error of the outputs. The worst first.
    """
    split = context.data.validation
    chosen = torch.linspace(0, len(split) - 1, min(len(split), TABLE_IMAGES)).long()
    inputs = [context.data.normalised(split.pixels[part]).numpy() for part in chosen.split(32)]
    labels = split.labels[chosen]
    reference = runtime.load(fp32, threads=context.threads).run_all(inputs)
    best = context.data.task.score(torch.from_numpy(reference), labels)
    rows, names = [], list(calibrated.layers())
    for number, name in enumerate(names, start=1):
        context.reporter.step(number, len(names), "sensitivity")
        outputs = _outputs(context, quantizer.quantized(calibrated, only=[name]), inputs)
        error = float(np.square(outputs - reference).mean() / max(1e-12, float(reference.var())))
        rows.append(
            {
                "layer": name,
                "drop": best - context.data.task.score(torch.from_numpy(outputs), labels),
                "output_error": error,
            }
        )
    return sorted(rows, key=lambda row: (-row["drop"], -row["output_error"]))


def _outputs(context: Context, proto: onnx.ModelProto, inputs: list[Array]) -> Array:
    path = context.folder / "trial.onnx"
    try:
        onnx_export.save(proto, path)
        return runtime.load(path, threads=context.threads).run_all(inputs)
    finally:
        path.unlink(missing_ok=True)


def _score(context: Context, proto: onnx.ModelProto) -> float:
    """Score of an ONNX model on validation."""
    outputs = _outputs(context, proto, list(arrays(context, context.data.validation)))
    return context.data.task.score(torch.from_numpy(outputs), context.data.validation.labels)


def _agreement(
    context: Context, state: State, proto: onnx.ModelProto, scales: dict[str, tuple[float, int]]
) -> dict[str, Any]:
    """How the int8 file agrees with the network on its grid, over validation images."""
    aware = QuantAware(state.need_model().cpu(), reduce_range=not has_int8_dot()).eval()
    aware.fix(scales)
    inputs = list(arrays(context, context.data.validation, TABLE_IMAGES))
    with torch.no_grad():
        wanted = np.concatenate([aware(torch.from_numpy(batch)).numpy() for batch in inputs])
    found = _outputs(context, proto, inputs)
    agreed = float((wanted.argmax(1) == found.argmax(1)).mean())
    return {
        "max_abs_logit_diff": float(np.abs(wanted - found).max()),
        "top1_agreement": agreed,
        "samples": len(found),
        "used": False,
    }
