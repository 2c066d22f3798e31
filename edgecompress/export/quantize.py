"""Smaller number formats of an fp32 ONNX file: static int8 (QDQ, per channel) and fp16.

Calibration is streamed, a batch at a time. Weights are 7-bit (`reduce_range`) where the CPU has no int8 dot product: there two products
are added in 16 bits and saturate.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from edgecompress.errors import EdgecompressError
from edgecompress.export import onnx as onnx_export
from edgecompress.measure.machine import has_int8_dot
from edgecompress.measure.runtime import Array

FORMATS = ("fp32", "fp16", "int8-qdq")
COMPUTE = ("Conv", "Gemm", "MatMul", "ConvTranspose")


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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


def to_int8(
    fp32: Path, batches: Callable[[], Iterable[Array]], *, reduce_range: bool | None = None, method: str = "minmax"
) -> onnx.ModelProto:
    """The static int8 QDQ form of the model at `fp32`, calibrated on `batches()` of (N, C, H, W) float32.

    Activations are uint8 per tensor, weights int8 per output channel, biases int32. `reduce_range` None asks the CPU. Metadata is kept.
    """
    reduce = not has_int8_dot() if reduce_range is None else reduce_range
    original = onnx.load(str(fp32))
    with tempfile.TemporaryDirectory(dir=fp32.parent, prefix=".quantize-") as folder, _quiet():
        prepared, result = Path(folder) / "prepared.onnx", Path(folder) / "int8.onnx"
        try:
            quant_pre_process(str(fp32), str(prepared), skip_symbolic_shape=True)
            quantize_static(
                str(prepared),
                str(result),
                _Reader(batches(), original.graph.input[0].name),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
                reduce_range=reduce,
                calibrate_method={
                    "minmax": CalibrationMethod.MinMax,
                    "entropy": CalibrationMethod.Entropy,
                    "percentile": CalibrationMethod.Percentile,
                }[method],
            )
        except Exception as error:  # onnxruntime raises what its parts raise
            raise EdgecompressError(f"int8 quantization of '{fp32.name}' failed: {str(error).splitlines()[0]}") from error
        proto = onnx.load(str(result))
    _finish(proto, original)
    return proto


def to_fp16(fp32: Path) -> onnx.ModelProto:
    """The fp16 form of the model at `fp32`: weights and arithmetic in half precision, input and output stay float32."""
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
    proto.producer_name = original.producer_name
    proto.producer_version = original.producer_version
    onnx_export.set_metadata(proto, {p.key: p.value for p in original.metadata_props})


def float_layers(proto: onnx.ModelProto) -> list[str]:
    """Names of the convolutions and matrix products of an int8 model that do not read a dequantized value: left in float."""
    made_by = {output: node.op_type for node in proto.graph.node for output in node.output}
    return [
        node.name or node.output[0]
        for node in proto.graph.node
        if node.op_type in COMPUTE and any(made_by.get(i) != "DequantizeLinear" for i in node.input[:2])
    ]


def batches_of(values: Array, size: int = 32) -> Iterator[Array]:
    """`values` (N, ...) in parts of at most `size` rows, float32."""
    for start in range(0, len(values), size):
        yield np.ascontiguousarray(values[start : start + size], dtype=np.float32)
