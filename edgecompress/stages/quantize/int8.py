"""The int8 file of a network: its calibration, the layers that cost most accuracy, and those that
stay in float for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import torch
from torch import nn

from edgecompress.export import calibration
from edgecompress.export import onnx as onnx_export
from edgecompress.export import quantize as quantizer
from edgecompress.export.calibration import Calibrated
from edgecompress.formats import bits_by_layer
from edgecompress.measure import runtime, trials
from edgecompress.measure.runtime import Array
from edgecompress.methods.qat import QuantAware
from edgecompress.run.context import Context
from edgecompress.run.sections import GridRow, Int8Section, SensitivityRecord
from edgecompress.run.state import LearnedGrid, State
from edgecompress.stages.common import arrays, file_accuracy, reduces_range

if TYPE_CHECKING:
    from edgecompress.stages.quantize import QuantizeStage

TABLE_IMAGES = 1000
"""Validation images on which each layer is quantized alone."""
AGREEMENT = 0.98
"""Share of validation images on which the int8 file must predict what the network predicts on its
grid, for its scales to be used.
"""

Scales = Mapping[str, tuple[float, int]]
"""Scale and zero point of what each layer reads."""


@dataclass(frozen=True)
class SensitivityRow:
    """A layer quantized alone: the accuracy that it costs, and the relative error of the
    outputs.
    """

    layer: str
    drop: float
    output_error: float

    def as_dict(self) -> SensitivityRecord:
        """As `result.json` has it."""
        return {"layer": self.layer, "drop": self.drop, "output_error": self.output_error}


@dataclass(frozen=True)
class GridAgreement:
    """How the int8 file agrees with the network on its learned grid (in the top-1 class: None for a
    regression); `used` when it has its scales.
    """

    max_abs_logit_diff: float
    top1_agreement: float | None
    samples: int
    used: bool = False

    def as_dict(self) -> GridRow:
        """As `result.json` has it."""
        return {
            "max_abs_logit_diff": self.max_abs_logit_diff,
            "top1_agreement": self.top1_agreement,
            "samples": self.samples,
            "used": self.used,
        }


@dataclass(frozen=True)
class Int8File:
    """The int8 file, and what the result has of it; None where it was not measured."""

    proto: onnx.ModelProto
    qat: GridAgreement | None = None
    sensitivity: tuple[SensitivityRow, ...] | None = None
    left_in_float: tuple[str, ...] | None = None
    unmet: str | None = None
    """Why it loses more accuracy than allowed."""

    def section(self) -> Int8Section:
        """What `result.json` has of it."""
        section: Int8Section = {}
        if self.qat is not None:
            section["qat"] = self.qat.as_dict()
        if self.sensitivity is not None:
            section["sensitivity"] = [row.as_dict() for row in self.sensitivity]
        if self.left_in_float is not None:
            section["left_in_float"] = list(self.left_in_float)
        if self.unmet is not None:
            section["drop_unmet"] = self.unmet
        return section


def make_int8(
    context: Context, settings: QuantizeStage, state: State, fp32: Path, form: str
) -> Int8File:
    """The file of the network at `fp32` in `form`, int8 or of fewer bits, with the layers in float
    that `max_drop` needs.
    """
    batches = arrays(context, context.data.train, settings.calibration_images)
    calibrated = calibration.calibrate(fp32, batches, settings.method)
    bits = bits_of(state, form, calibrated)
    int8, scales = _with_learned_scales(context, state, calibrated, bits)
    if settings.max_drop is None and not settings.sensitivity:
        return int8
    int8 = replace(int8, sensitivity=tuple(sensitivity(context, calibrated, fp32, bits)))
    if settings.max_drop is None:
        return int8
    least = file_accuracy(context, fp32, context.data.validation)
    if state.grid is not None:
        least = max(least, state.grid.original)  # what tuning lost is lost, too
    return _within_drop(context, calibrated, int8, scales, bits, least, settings.max_drop)


def bits_of(state: State, form: str, calibrated: Calibrated) -> dict[str, int]:
    """Bits of the weights of each layer: those that it was trained with."""
    usual = bits_by_layer(form, [*calibrated.layers()])
    if state.grid is None:
        return usual
    trained = {name: state.grid.bits.get(name, 8) for name in state.grid.scales}
    # a layer whose weight has another name in the file: what is on a grid stays on it
    return {name: trained.get(name, usual[name]) for name in usual}


def _with_learned_scales(
    context: Context, state: State, calibrated: Calibrated, bits: Mapping[str, int]
) -> tuple[Int8File, Scales | None]:
    """The file with the scales of stage `qat`, where it agrees with the network on its grid and is
    no worse than with calibrated ones; the scales that it has (None: calibrated).
    """
    reduced = reduces_range(context)
    plain = quantizer.quantized(calibrated, reduce_range=reduced, bits=bits)
    if state.grid is None:
        return Int8File(plain), None
    known = calibrated.layers()
    scales = {name: pair for name, pair in state.grid.scales.items() if name in known}
    learned = quantizer.quantized(calibrated, scales=scales, reduce_range=reduced, bits=bits)
    agreed = _agreement(context, state.need_model().cpu(), state.grid, learned)
    same = agreed.top1_agreement is None or agreed.top1_agreement >= AGREEMENT
    if same and _score(context, learned) >= _score(context, plain):
        return Int8File(learned, replace(agreed, used=True)), scales
    return Int8File(plain, agreed), None


def _within_drop(
    context: Context,
    calibrated: Calibrated,
    int8: Int8File,
    scales: Scales | None,
    bits: Mapping[str, int],
    reference: float,
    max_drop: float,
) -> Int8File:
    """Leave the most sensitive layers in float until the file loses at most `max_drop` of the
    `reference` accuracy.
    """
    least = reference - max_drop
    proto, exclude = int8.proto, list[str]()
    for row in int8.sensitivity or ():
        if _score(context, proto) >= least - 1e-9:
            break
        exclude.append(row.layer)
        kept = None
        if scales is not None:
            kept = {name: pair for name, pair in scales.items() if name not in exclude}
        proto = quantizer.quantized(
            calibrated,
            exclude=exclude,
            scales=kept,
            reduce_range=reduces_range(context),
            bits={name: width for name, width in bits.items() if name not in exclude},
        )
    short = least - _score(context, proto)
    unmet = None
    if short > 1e-9:
        unmet = (
            f"quantized, it loses {short + max_drop:.2%} on {len(context.data.validation)} "
            f"validation samples, more than {max_drop:.2%}"
        )
    return replace(int8, proto=proto, left_in_float=tuple(exclude), unmet=unmet)


def sensitivity(
    context: Context, calibrated: Calibrated, fp32: Path, bits: Mapping[str, int]
) -> list[SensitivityRow]:
    """A row for each layer quantized alone to its `bits`, on validation images; the worst first."""
    split, task = context.data.validation, context.data.task
    chosen = torch.linspace(0, len(split) - 1, min(len(split), TABLE_IMAGES)).long()
    inputs = [context.data.normalised(split.pixels[part]).numpy() for part in chosen.split(32)]
    labels = context.data.targets(split)[chosen]
    reference = runtime.load(fp32, threads=context.threads).run_all(inputs)
    best = task.score(torch.from_numpy(reference), labels)
    rows, names = [], list(calibrated.layers())
    for number, name in enumerate(names, start=1):
        context.reporter.step(number, len(names), "sensitivity")
        outputs = _outputs(
            context,
            quantizer.quantized(
                calibrated,
                only=[name],
                reduce_range=reduces_range(context),
                bits={name: bits.get(name, 8)},
            ),
            inputs,
        )
        error = float(np.square(outputs - reference).mean() / max(1e-12, float(reference.var())))
        drop = best - task.score(torch.from_numpy(outputs), labels)
        rows.append(SensitivityRow(name, drop, error))
    return sorted(rows, key=lambda row: (-row.drop, -row.output_error))


def _outputs(context: Context, proto: onnx.ModelProto, inputs: list[Array]) -> Array:
    path = context.folder / "trial.onnx"
    try:
        onnx_export.save(proto, path)
        trials.try_out(path)
        return runtime.load(path, threads=context.threads).run_all(inputs)
    finally:
        path.unlink(missing_ok=True)


def _score(context: Context, proto: onnx.ModelProto) -> float:
    """Score of an ONNX model on validation."""
    outputs = _outputs(context, proto, list(arrays(context, context.data.validation)))
    targets = context.data.targets(context.data.validation)
    return context.data.task.score(torch.from_numpy(outputs), targets)


def _agreement(
    context: Context, model: nn.Module, grid: LearnedGrid, proto: onnx.ModelProto
) -> GridAgreement:
    """How the int8 file agrees with `model` on its `grid`, over validation images."""
    aware = QuantAware(model, reduce_range=reduces_range(context), bits=grid.bits).eval()
    aware.fix(dict(grid.scales))
    inputs = list(arrays(context, context.data.validation, TABLE_IMAGES))
    with torch.no_grad():
        expected = np.concatenate([aware(torch.from_numpy(batch)).numpy() for batch in inputs])
    outputs = _outputs(context, proto, inputs)
    agreed = None
    if context.data.task.metric == "accuracy":
        agreed = float((expected.argmax(1) == outputs.argmax(1)).mean())
    return GridAgreement(float(np.abs(expected - outputs).max()), agreed, len(outputs))
