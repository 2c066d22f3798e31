"""Adaptive average pools as ONNX: a mean, a pool, or copies.

The exporter writes those whose sizes do not divide each other, among them every pool of a network
that is used on small images, as Transpose, GatherND and tables of indices.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch


@functools.cache
def pools() -> dict[Callable[..., Any], Callable[..., Any]]:
    """How adaptive average pools over two axes are translated, for `torch.onnx.export`."""
    return {
        torch.ops.aten._adaptive_avg_pool2d.default: adaptive_average,
        torch.ops.aten.adaptive_avg_pool2d.default: adaptive_average,
    }


def adaptive_average(x: Any, output_size: Sequence[int]) -> Any:
    """The mean over each of `output_size` windows of `x` (N, C, H, W), whose H and W are known."""
    from onnxscript import opset18

    op: Any = opset18
    sizes = tuple(int(size) for size in x.shape[2:])
    wanted = tuple(int(size) for size in output_size)
    if wanted == (1, 1):
        return op.ReduceMean(x, op.Constant(value_ints=[2, 3]), keepdims=1)
    if sizes == (1, 1):
        return op.Expand(x, op.Constant(value_ints=[1, 1, *wanted]))
    if all(size % want == 0 for size, want in zip(sizes, wanted, strict=True)):
        steps = [size // want for size, want in zip(sizes, wanted, strict=True)]
        return op.AveragePool(x, kernel_shape=steps, strides=steps)
    for axis, size, want in zip((2, 3), sizes, wanted, strict=True):
        x = _windows(op, x, axis, size, want)
    return x


def _windows(op: Any, x: Any, axis: int, size: int, wanted: int) -> Any:
    """The means of `wanted` windows of `x` along `axis`, which has `size` positions."""
    if size == wanted:
        return x
    parts = []
    for number in range(wanted):
        first, last = number * size // wanted, -(-(number + 1) * size // wanted)
        part = op.Slice(
            x,
            op.Constant(value_ints=[first]),
            op.Constant(value_ints=[last]),
            op.Constant(value_ints=[axis]),
        )
        if last - first > 1:
            part = op.ReduceMean(part, op.Constant(value_ints=[axis]), keepdims=1)
        parts.append(part)
    return op.Concat(*parts, axis=axis)
