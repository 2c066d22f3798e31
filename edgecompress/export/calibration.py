"""Calibration: the ranges of tensors of an fp32 ONNX file, and the file prepared for integers."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import create_calibrator
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry
from onnxruntime.quantization.shape_inference import quant_pre_process

from edgecompress.errors import EdgecompressError, UsageError
from edgecompress.measure.runtime import Array

COMPUTE = ("Conv", "Gemm", "MatMul", "ConvTranspose")
"""Operations whose weights are quantized."""
_METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """`batches` for the input called `name`, one at a time."""

    def __init__(self, batches: Iterable[Array], name: str) -> None:
        self._batches = iter(batches)
        self._name = name

    def get_next(self) -> dict[str, Array] | None:
        """The next batch (N, C, H, W) by the name of its input; None after the last one."""
        batch = next(self._batches, None)
        return None if batch is None else {self._name: batch}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the warnings and prints of ONNX Runtime's tools off the user's streams."""
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
    """An fp32 model prepared for quantization (shapes inferred, operations fused), and the ranges
    of its tensors on calibration data.
    """

    prepared: onnx.ModelProto
    ranges: Any
    original: onnx.ModelProto

    def layers(self) -> dict[str, list[str]]:
        """Convolutions and matrix products: {name of the layer in the network: names of its nodes,
        one for each call of the layer}.
        """
        nodes: dict[str, list[str]] = {}
        for node in self.compute_nodes():
            nodes.setdefault(layer_of(node), []).append(node.name)
        return nodes

    def compute_nodes(self) -> list[onnx.NodeProto]:
        """The nodes of convolutions and matrix products."""
        return [node for node in self.prepared.graph.node if node.op_type in COMPUTE]


def layer_of(node: onnx.NodeProto) -> str:
    """The name in the network of the layer that `node` computes: that of its weight, else its
    own.
    """
    weight = next((name for name in node.input[1:2] if name.endswith(".weight")), None)
    return str(weight.removesuffix(".weight") if weight else node.name or node.output[0])


def calibrate(fp32: Path, batches: Iterable[Array], method: str = "minmax") -> Calibrated:
    """Prepare the model at `fp32` and collect the ranges of its tensors on `batches`
    `(N, C, H, W)` float32.

    One batch is in memory at a time. `minmax` takes the extremes, `percentile` 99.999 % of all
    values, `entropy` the range with the least loss of information. Raises `EdgecompressError` where
    ONNX Runtime cannot run or read the model, `UsageError` without a batch.
    """
    original = onnx.load(str(fp32))
    name = original.graph.input[0].name
    count = 0
    with tempfile.TemporaryDirectory(dir=fp32.parent, prefix=".calibrate-") as folder, quiet():
        prepared = Path(folder) / "prepared.onnx"
        try:
            quant_pre_process(str(fp32), str(prepared), skip_symbolic_shape=True)
            calibrator = create_calibrator(
                prepared,
                list(quantizable()),
                str(Path(folder) / "augmented.onnx"),
                _METHODS[method],
                extra_options={"symmetric": False},
            )
            for batch in batches:
                calibrator.collect_data(Reader([batch], name))
                count += 1
            if not count:
                raise UsageError("no calibration image: give at least one")
            ranges = calibrator.compute_data()
            return Calibrated(_with_plain_gemms(onnx.load(str(prepared))), ranges, original)
        except EdgecompressError:
            raise
        except Exception as error:  # onnxruntime raises what its parts raise
            raise EdgecompressError(
                f"calibration of '{fp32.name}' failed: {str(error).splitlines()[0]}"
            ) from error


def _with_plain_gemms(proto: onnx.ModelProto) -> onnx.ModelProto:
    """`proto`, changed in place: factors of the products and of the biases of Gemm (alpha, beta) go
    into constant weights and biases, since ONNX Runtime's tools forget beta in the scale of an int8
    bias, and it has no int8 kernel for alpha.
    """
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    readers = Counter(name for node in proto.graph.node for name in node.input)
    for node in proto.graph.node:
        if node.op_type != "Gemm":
            continue
        for place, name in ((1, "alpha"), (2, "beta")):
            factor = next((a for a in node.attribute if a.name == name), None)
            read = node.input[place] if place < len(node.input) else ""
            if factor is None or factor.f == 1.0 or (read and read not in constants):
                continue
            if read:
                value = onnx.numpy_helper.to_array(constants[read])
                scaled = (value * factor.f).astype(value.dtype)
                if readers[read] > 1:  # others read the plain values
                    readers[read] -= 1
                    own = f"{node.name or node.output[0]}.{name}.{read}"
                    constants[own] = proto.graph.initializer.add(name=own)
                    node.input[place] = read = own
                constants[read].CopyFrom(onnx.numpy_helper.from_array(scaled, read))
            factor.f = 1.0
    return proto


def quantizable() -> set[str]:
    """Operations that ONNX Runtime's tools quantize."""
    return set(QLinearOpsRegistry) | set(QDQRegistry)


class Override(TypedDict, total=False):
    """The quantization parameters of a tensor, as ONNX Runtime reads them; scalars. Without a
    scale, one is computed from its values.
    """

    quant_type: QuantType
    scale: Array
    zero_point: Array
    axis: int


Overrides = dict[str, list[Override]]
"""By the name of the tensor."""
