"""The int8 format of an fp32 ONNX file: static, QDQ, with a scale for each output channel.

Calibration is streamed, one batch at a time. Weights are 7-bit (`reduce_range`) unless the file is
for processors with an int8 dot product: on others the sum of two products of 8 bits (up to
255 * 127 * 2) does not fit into 16 bits, and saturates. The file does not depend on the processor
that builds it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from edgecompress.errors import EdgecompressError, UsageError
from edgecompress.export import onnx as onnx_export
from edgecompress.export.calibration import (
    COMPUTE,
    Calibrated,
    Override,
    Overrides,
    calibrate,
    layer_of,
    quantizable,
    quiet,
)
from edgecompress.export.low_bits import on_low_bits
from edgecompress.formats import bits_by_layer
from edgecompress.measure.runtime import WEIGHT_BITS, Array

MOVES = (
    "Reshape",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
    "Flatten",
    "Slice",
    "Gather",
    "Split",
    "Expand",
    "MaxPool",
    "Identity",
)
"""Operations across which ONNX Runtime moves quantization."""


def quantized(
    calibrated: Calibrated,
    *,
    reduce_range: bool = True,
    exclude: Collection[str] = (),
    only: Collection[str] | None = None,
    scales: Mapping[str, tuple[float, int]] | None = None,
    bits: Mapping[str, int] | None = None,
) -> onnx.ModelProto:
    """The int8 QDQ format: activations uint8 per tensor, weights int8 per output channel, biases
    int32. Metadata are kept.

    `bits` names layers whose weights take the values of 4 or 2 bits.

    With `reduce_range` weights have 7 bits, which hold on every processor; the metadata say how
    many. `exclude` names layers that stay in float, `only` the
    only ones that do not. `scales` overrides the calibrated scale and zero point of the input of a
    layer: {layer: (scale, zero point)}. Raises `UsageError` for a layer that is not in the file.
    """
    calibrated, steps = on_low_bits(calibrated, bits or {})
    nodes = calibrated.layers()
    unknown = [name for name in (*exclude, *(only or ()), *(scales or {})) if name not in nodes]
    if unknown:
        raise UsageError(f"no layer '{unknown[0]}' in the file: there are {', '.join(nodes)}")
    in_float = [*_not_quantizable(calibrated), *(n for name in exclude for n in nodes[name])]
    in_int8 = {node for name in (nodes if only is None else only) for node in nodes[name]}
    model = _insert_qdq(
        calibrated,
        reduce_range=reduce_range,
        only=[] if only is None else [node for name in only for node in nodes[name]],
        exclude=in_float,
        overrides=(
            _overrides(calibrated, scales or {}) | _of_grouped_transposed(calibrated) | steps
        ),
    )
    model.topological_sort()
    _shield_float(model, in_int8.difference(in_float))
    model.topological_sort()
    proto: onnx.ModelProto = model.model
    onnx_export.finish_like(proto, calibrated.original)
    widest = proto.metadata_props.add()
    widest.key, widest.value = WEIGHT_BITS, "7" if reduce_range else "8"
    return proto


def _not_quantizable(calibrated: Calibrated) -> list[str]:
    """Names of nodes that other versions of ONNX Runtime, or its tools, have no int8 form of: cubic
    resizing, and a LayerNorm over several axes.
    """
    shapes = {tensor.name: tensor.dims for tensor in calibrated.prepared.graph.initializer}
    return [
        node.name
        for node in calibrated.prepared.graph.node
        if (node.op_type == "Resize" and any(a.s == b"cubic" for a in node.attribute))
        or (node.op_type == "LayerNormalization" and len(shapes.get(node.input[1], [0])) != 1)
    ]


def _overrides(calibrated: Calibrated, scales: Mapping[str, tuple[float, int]]) -> Overrides:
    """ONNX Runtime's overrides of quantization parameters, by the tensor that a layer reads."""
    overrides: Overrides = {}
    for node in calibrated.compute_nodes():
        layer = layer_of(node)
        if layer in scales:
            scale, zero_point = scales[layer]
            parameters: Override = {
                "quant_type": QuantType.QUInt8,
                "scale": np.asarray(scale, np.float32),
                "zero_point": np.asarray(zero_point, np.uint8),
            }
            overrides[node.input[0]] = [parameters]
    return overrides


def _of_grouped_transposed(calibrated: Calibrated) -> Overrides:
    """One scale for the weight (in, out / groups, ...) of a grouped transposed convolution: a scale
    for each of its channels would be shared by the groups, and does not fit its bias.
    """
    return {
        node.input[1]: [Override(quant_type=QuantType.QInt8)]
        for node in calibrated.compute_nodes()
        if node.op_type == "ConvTranspose"
        and any(a.name == "group" and a.i > 1 for a in node.attribute)
    }


def _insert_qdq(
    calibrated: Calibrated,
    *,
    reduce_range: bool,
    only: list[str],
    exclude: list[str],
    overrides: Overrides,
) -> Any:
    """The calibrated model with QuantizeLinear and DequantizeLinear inserted, an
    `onnxruntime.quantization.onnx_model.ONNXModel`; `only` (empty for all) and `exclude` are names
    of nodes.
    """
    with quiet():
        try:
            quantizer = QDQQuantizer(
                copy.deepcopy(calibrated.prepared),
                per_channel=True,
                reduce_range=reduce_range,
                weight_qType=QuantType.QInt8,
                activation_qType=QuantType.QUInt8,
                tensors_range=copy.deepcopy(calibrated.ranges),
                nodes_to_quantize=only,
                nodes_to_exclude=exclude,
                op_types_to_quantize=list(quantizable()),
                extra_options={"TensorQuantOverrides": overrides},
            )
            quantizer.quantize_model()
        except Exception as error:  # onnxruntime raises what its parts raise
            raise EdgecompressError(
                f"int8 quantization failed: {str(error).splitlines()[0]}"
            ) from error
    return quantizer.model


def _shield_float(model: Any, chosen: Collection[str]) -> None:
    """Change an `onnxruntime.quantization.onnx_model.ONNXModel` in place so that the nodes it
    leaves in float, those other than the `chosen`, run in float too.

    From version 1.21 on ONNX Runtime quantizes at load time the float weight of a layer that reads
    dequantized values, with one scale for the complete tensor, and computes the product of two
    dequantized tensors in int8. A `Max` of one input between them prevents it and changes no value.
    """
    graph = model.model.graph
    dequantized = _dequantized(graph)
    shields: dict[str, str] = {}
    for node in graph.node:
        if node.op_type in COMPUTE and node.name not in chosen and node.input[0] in dequantized:
            node.input[0] = shields.setdefault(node.input[0], f"{node.input[0]}_kept")
    model.add_nodes(
        [
            onnx.helper.make_node("Max", [read], [kept], name=f"{kept}_Max")
            for read, kept in shields.items()
        ]
    )


def _dequantized(graph: onnx.GraphProto) -> set[str]:
    """Tensors of a sorted graph that were dequantized, and at most moved since."""
    tensors = set[str]()
    for node in graph.node:
        is_moved = node.op_type in MOVES and node.input[0] in tensors
        if node.op_type == "DequantizeLinear" or is_moved:
            tensors |= {*node.output}
    return tensors


def to_int8(
    fp32: Path,
    batches: Callable[[], Iterable[Array]],
    *,
    reduce_range: bool = True,
    method: str = "minmax",
    form: str = "int8-qdq",
) -> onnx.ModelProto:
    """The int8 QDQ format of the model at `fp32`, or one of fewer bits, calibrated on `batches()`
    of `(N, C, H, W)` float32: `quantized(calibrate(...))`.
    """
    calibrated = calibrate(fp32, batches(), method)
    bits = bits_by_layer(form, [*calibrated.layers()])
    return quantized(calibrated, reduce_range=reduce_range, bits=bits)


def batches_of(values: Array, size: int = 32) -> Iterator[Array]:
    """`values` `(N, ...)` in batches of at most `size` rows, float32."""
    for start in range(0, len(values), size):
        yield np.ascontiguousarray(values[start : start + size], dtype=np.float32)
