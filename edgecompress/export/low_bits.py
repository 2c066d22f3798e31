"""Weights of 4 or 2 bits in an int8 file: their values on the grid, and the scales of it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from onnxruntime.quantization import QuantType

from edgecompress.core import grid
from edgecompress.export.calibration import Calibrated, Override, Overrides, layer_of
from edgecompress.measure.runtime import Array

LEAST = 1e-6
"""Smallest step of a channel over the largest of its layer: with less, a channel of zeros has a
bias that does not fit into 32 bits.
"""


def on_low_bits(calibrated: Calibrated, bits: Mapping[str, int]) -> tuple[Calibrated, Overrides]:
    """A copy in which the weights of the layers in `bits` are on the grids of so many bits, and the
    scales of these.

    Weights that a training put on such a grid stay as they are, also where the export scaled their
    channels.
    """
    prepared = copy.deepcopy(calibrated.prepared)
    constants = {tensor.name: tensor for tensor in prepared.graph.initializer}
    overrides: Overrides = {}
    for node in calibrated.compute_nodes():
        low, name = bits.get(layer_of(node), 8), node.input[1]
        if low not in grid.LOW_BITS or name not in constants or name in overrides:
            continue
        values = numpy_helper.to_array(constants[name])
        if node.op_type == "MatMul" and values.ndim != 2:
            continue  # ONNX Runtime's tools have one scale for it
        axis = _axis(node)
        rounded, steps = _rounded(values, axis, low)
        constants[name].CopyFrom(numpy_helper.from_array(rounded.astype(values.dtype), name))
        overrides[name] = [_override(step, axis) for step in steps]
    return replace(calibrated, prepared=prepared), overrides


def _axis(node: onnx.NodeProto) -> int | None:
    """The axis of output channels of the weight of `node`; None for one scale in all."""
    if node.op_type == "ConvTranspose":
        grouped = any(a.name == "group" and a.i > 1 for a in node.attribute)
        return None if grouped else 1
    if node.op_type == "Gemm":
        return 0 if any(a.name == "transB" and a.i for a in node.attribute) else 1
    return 1 if node.op_type == "MatMul" else 0


def _rounded(values: Array, axis: int | None, bits: int) -> tuple[Array, Array]:
    """`values` on their grid, and its steps (channels,), float32."""
    weight = torch.from_numpy(values.astype(np.float64))
    moved = weight.reshape(1, -1) if axis is None else weight.movedim(axis, 0)
    rows = moved.flatten(1)
    steps = grid.fitted_steps(rows, bits)
    steps = _in_fp16(steps.clamp_min(LEAST * float(steps.max())))
    rounded = grid.rounded(rows, steps[:, None], bits).reshape(moved.shape)
    placed = rounded.reshape(weight.shape) if axis is None else rounded.movedim(0, axis)
    return np.ascontiguousarray(placed.numpy()), steps.float().numpy()


def _in_fp16(steps: torch.Tensor) -> torch.Tensor:
    """`steps` (channels,) as fp16 has them, which takes half of the bytes, where that is exact to
    one in 2,000.
    """
    normal = (steps >= torch.finfo(torch.float16).tiny) & (steps < torch.finfo(torch.float16).max)
    return torch.where(normal, steps.half().to(steps.dtype), steps.float().to(steps.dtype))


def _override(step: np.float32, axis: int | None) -> Override:
    override: Override = {
        "quant_type": QuantType.QInt8,
        "scale": np.asarray(step, np.float32),
        "zero_point": np.asarray(0, np.int8),
    }
    if axis is not None:
        override["axis"] = axis
    return override
