"""Smaller number formats of an fp32 ONNX file: static int8 (QDQ, per channel) and fp16.

Calibration is streamed, a batch at a time. Weights are 7-bit (`reduce_range`) where the CPU has no
int8 dot product: there two products are added in 16 bits and saturate.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import create_calibrator
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry
from onnxruntime.quantization.shape_inference import quant_pre_process

from edgecompress.errors import EdgecompressError, UsageError
from edgecompress.export import onnx as onnx_export
from edgecompress.measure.machine import has_int8_dot
from edgecompress.measure.runtime import Array, fused_graph

FORMATS = ("fp32", "fp16", "int8-qdq")
COMPUTE = ("Conv", "Gemm", "MatMul", "ConvTranspose")
FLOAT_KERNELS = (*COMPUTE, "FusedConv", "FusedGemm", "FusedMatMul")
"""The same in ONNX Runtime's own graph, where its int8 kernels have names of their own
(QLinearConv, QGemm, ...).
"""
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
"""Operations through which ONNX Runtime moves quantization."""
SHRUNK = 0.35
"""Share of the fp32 file that an int8 file should take at most."""
_METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, batches: Iterable[Array], name: str) -> None:
        self._batches = iter(batches)
        self._name = name

    def get_next(self) -> dict[str, Array] | None:
        batch = next(self._batches, None)
        return None if batch is None else {self._name: batch}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


@dataclass(frozen=True)
class Calibrated:
    """An fp32 model made ready for quantization (shapes inferred, operations fused), and the range
    of its tensors on calibration data.
    """

    prepared: onnx.ModelProto
    ranges: Any
    original: onnx.ModelProto

    def layers(self) -> dict[str, list[str]]:
        """Convolutions and matrix products: {name of the layer in the network: names of its nodes,
        one for each time that it is called}.
        """
        found: dict[str, list[str]] = {}
        for node in self.prepared.graph.node:
            if node.op_type in COMPUTE:
                found.setdefault(layer_of(node), []).append(node.name)
        return found


def layer_of(node: onnx.NodeProto) -> str:
    """The name in the network of the layer that `node` computes: that of its weight, else its
    own.
    """
    weight = next((name for name in node.input[1:2] if name.endswith(".weight")), None)
    return str(weight.removesuffix(".weight") if weight else node.name or node.output[0])


def calibrate(fp32: Path, batches: Iterable[Array], method: str = "minmax") -> Calibrated:
    """Prepare the model at `fp32` and collect its tensors' ranges from `batches` of (N, C, H, W)
    float32.

    One batch is in memory at a time. `minmax` takes the extremes, `percentile` 99.999 % of all
    values, `entropy` the range with the least loss of information. Raises `EdgecompressError` where
    ONNX Runtime cannot run or read the model, `UsageError` without a batch.
    """
    original = onnx.load(str(fp32))
    name, seen = original.graph.input[0].name, 0
    with tempfile.TemporaryDirectory(dir=fp32.parent, prefix=".calibrate-") as folder, _quiet():
        prepared = Path(folder) / "prepared.onnx"
        try:
            quant_pre_process(str(fp32), str(prepared), skip_symbolic_shape=True)
            calibrator = create_calibrator(
                prepared,
                list(_quantizable()),
                str(Path(folder) / "augmented.onnx"),
                _METHODS[method],
                extra_options={"symmetric": False},
            )
            for batch in batches:
                calibrator.collect_data(_Reader([batch], name))
                seen += 1
            if not seen:
                raise UsageError("no calibration image: give at least one")
            return Calibrated(onnx.load(str(prepared)), calibrator.compute_data(), original)
        except EdgecompressError:
            raise
        except Exception as error:  # onnxruntime raises what its parts raise
            raise EdgecompressError(
                f"calibration of '{fp32.name}' failed: {str(error).splitlines()[0]}"
            ) from error


def _quantizable() -> set[str]:
    return set(QLinearOpsRegistry) | set(QDQRegistry)


def quantized(
    calibrated: Calibrated,
    *,
    reduce_range: bool | None = None,
    exclude: Collection[str] = (),
    only: Collection[str] | None = None,
    scales: Mapping[str, tuple[float, int]] | None = None,
) -> onnx.ModelProto:
    """The int8 QDQ form: activations uint8 per tensor, weights int8 per output channel, biases
    int32. Metadata is kept.

    `reduce_range` None asks the CPU. `exclude` names layers that stay in float, `only` the only
    ones that do not. `scales` gives the scale and zero point of what a layer reads, {layer: (scale,
    zero point)}, instead of those from the calibrated range.
    """
    reduce = not has_int8_dot() if reduce_range is None else reduce_range
    nodes = calibrated.layers()
    wrong = [name for name in (*exclude, *(only or ()), *(scales or {})) if name not in nodes]
    if wrong:
        raise UsageError(f"no layer '{wrong[0]}' in the file: there are {', '.join(nodes)}")
    reads = [
        (layer_of(node), node.input[0])
        for node in calibrated.prepared.graph.node
        if node.op_type in COMPUTE
    ]
    left_out = [node for name in exclude for node in nodes[name]]
    chosen = {
        node for name in (nodes if only is None else only) for node in nodes[name]
    }.difference(left_out)
    overrides = {
        read: [
            {
                "quant_type": QuantType.QUInt8,
                "scale": np.asarray(scale, np.float32),
                "zero_point": np.asarray(zero, np.uint8),
            }
        ]
        for layer, read in reads
        for scale, zero in [(scales or {}).get(layer, (None, None))]
        if scale is not None
    }
    proto = copy.deepcopy(calibrated.prepared)
    with _quiet():
        try:
            quantizer = QDQQuantizer(
                proto,
                True,
                reduce,
                QuantType.QInt8,
                QuantType.QUInt8,
                copy.deepcopy(calibrated.ranges),
                [] if only is None else [node for name in only for node in nodes[name]],
                left_out,
                list(_quantizable()),
                {"TensorQuantOverrides": overrides},
            )
            quantizer.quantize_model()
        except Exception as error:  # onnxruntime raises what its parts raise
            raise EdgecompressError(
                f"int8 quantization failed: {str(error).splitlines()[0]}"
            ) from error
    quantizer.model.topological_sort()
    _shield_float(quantizer.model, chosen)
    quantizer.model.topological_sort()
    proto = quantizer.model.model
    _finish(proto, calibrated.original)
    return proto


def _shield_float(model: Any, chosen: Collection[str]) -> None:
    """Keep in float at run time what an `onnxruntime.quantization.onnx_model.ONNXModel` leaves in
    float: nodes other than the `chosen`.

    From version 1.21 on ONNX Runtime quantizes at load the float weight of a layer that reads
    dequantized values, with one scale for all of it, and the product of two dequantized tensors is
    one of int8. A `Max` of one input, which changes no value, stands between them.
    """
    graph = model.model.graph
    dequantized, shields = set[str](), dict[str, str]()
    for node in graph.node:
        if node.op_type == "DequantizeLinear" or (
            node.op_type in MOVES and node.input[0] in dequantized
        ):
            dequantized |= {*node.output}
    for node in graph.node:
        if node.op_type in COMPUTE and node.name not in chosen and node.input[0] in dequantized:
            node.input[0] = shields.setdefault(node.input[0], f"{node.input[0]}_kept")
    model.add_nodes(
        [
            onnx.helper.make_node("Max", [read], [kept], name=f"{kept}_Max")
            for read, kept in shields.items()
        ]
    )


def to_int8(
    fp32: Path,
    batches: Callable[[], Iterable[Array]],
    *,
    reduce_range: bool | None = None,
    method: str = "minmax",
) -> onnx.ModelProto:
    """The int8 QDQ form of the model at `fp32`, calibrated on `batches()`:
    `quantized(calibrate(...))`.
    """
    return quantized(calibrate(fp32, batches(), method), reduce_range=reduce_range)


def to_fp16(fp32: Path) -> onnx.ModelProto:
    """The fp16 form of the model at `fp32`: weights and arithmetic in half precision, input and
    output stay float32.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    original = onnx.load(str(fp32))
    with _quiet():
        proto: onnx.ModelProto = convert_float_to_float16(onnx.load(str(fp32)), keep_io_types=True)
    OnnxModel(proto).topological_sort()  # the converter puts its casts last
    _finish(proto, original)
    return proto


def _finish(proto: onnx.ModelProto, original: onnx.ModelProto) -> None:
    onnx_export.strip(proto)
    used = {node.domain for node in proto.graph.node}
    domains = [
        entry for entry in proto.opset_import if entry.domain in used
    ]  # an unused one of a later version keeps old runtimes out
    del proto.opset_import[:]
    proto.opset_import.extend(domains)
    proto.ir_version = original.ir_version
    proto.producer_name = original.producer_name
    proto.producer_version = original.producer_version
    onnx_export.set_metadata(proto, {p.key: p.value for p in original.metadata_props})


def float_layers(path: Path) -> list[str]:
    """Layers (convolutions, matrix products) of the model at `path` that ONNX Runtime computes in
    float on the CPU.

    Those are the layers left in float by the file, and those that look quantized but for which
    there is no int8 kernel.
    """
    graph, names = onnx.load(str(path)).graph, dict[str, str]()
    stored = {
        node.output[0]: node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"
    }
    for node in graph.node:
        if node.op_type in COMPUTE:
            weight = stored.get(node.input[1], node.input[1]).removesuffix("_quantized")
            layer = (
                weight.removesuffix(".weight")
                if weight.endswith(".weight")
                else node.name or node.output[0]
            )
            names.update(dict.fromkeys((node.input[1], node.name, node.output[0]), layer))
    found = []
    for node in fused_graph(path).graph.node:
        if node.op_type in FLOAT_KERNELS:
            known = [
                names[name] for name in (node.name, node.output[0], node.input[1]) if name in names
            ]
            found.append(known[0] if known else node.name or node.output[0])
    return list(dict.fromkeys(found))


def float_tensors(proto: onnx.ModelProto) -> dict[str, int]:
    """Bytes of the float initializers of at least 256 values, by name, the largest first: what
    keeps an int8 file from shrinking.
    """
    kept = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
    large = [t for t in proto.graph.initializer if t.data_type in kept and np.prod(t.dims) >= 256]
    sizes = {tensor.name: len(tensor.raw_data) or 4 * len(tensor.float_data) for tensor in large}
    scales = {
        name
        for node in proto.graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear")
        for name in node.input[1:2]
    }
    return dict(
        sorted(((n, s) for n, s in sizes.items() if n not in scales), key=lambda pair: -pair[1])
    )


def batches_of(values: Array, size: int = 32) -> Iterator[Array]:
    """`values` (N, ...) in parts of at most `size` rows, float32."""
    for start in range(0, len(values), size):
        yield np.ascontiguousarray(values[start : start + size], dtype=np.float32)
