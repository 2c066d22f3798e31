"""What an int8 file does not get of int8: layers that ONNX Runtime has no int8 kernel for, large
tensors in float, weights that it unpacks at each run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from edgecompress.export.calibration import COMPUTE
from edgecompress.measure import names as long_names
from edgecompress.measure.runtime import fused_graph

FLOAT_KERNELS = (*COMPUTE, "FusedConv", "FusedGemm", "FusedMatMul")
"""Float kernels in the graph that ONNX Runtime runs; its int8 kernels have other names
(QLinearConv, QGemm, ...).
"""
SHRUNK = 0.35
"""Share of the bytes of the fp32 file that an int8 file should take at most."""


@dataclass(frozen=True)
class Running:
    """A file as ONNX Runtime runs it on the CPU: the graph after its fusions, the layer of each
    name that survives them, and the long names of lean ones.
    """

    graph: onnx.GraphProto
    layers: Mapping[str, str]
    known: Mapping[str, str]

    def float_layers(self) -> list[str]:
        """Layers (convolutions, matrix products) that are computed in float.

        These are the layers that the file leaves in float, and those that look quantized but have
        no int8 kernel.
        """
        layers = [
            self._layer_of(node, (node.name, node.output[0], node.input[1]))
            for node in self.graph.node
            if node.op_type in FLOAT_KERNELS
        ]
        return list(dict.fromkeys(layers))

    def unpacked_layers(self) -> list[str]:
        """Layers whose weights are computed at each run: the runtime folds what depends on
        constants alone when it loads a file, but not everything.
        """
        constant = {tensor.name for tensor in self.graph.initializer}
        computed: set[str] = set()
        layers = []
        for node in self.graph.node:  # in the order in which they run
            if all(name in constant or name in computed for name in node.input if name):
                computed.update(node.output)
            elif computed.intersection(node.input):
                layers.append(self._layer_of(node, (node.name, node.output[0], *node.input)))
        return list(dict.fromkeys(layers))

    def _layer_of(self, node: onnx.NodeProto, names: Sequence[str]) -> str:
        unknown: str = node.name or self.known.get(node.output[0], node.output[0])
        return next((self.layers[name] for name in names if name in self.layers), unknown)


def running(path: Path) -> Running:
    """How ONNX Runtime runs the model at `path`. Raises `UsageError` for a file that cannot be
    loaded.
    """
    known = long_names.recorded(path)
    layers = _layers_by_name(onnx.load(str(path)).graph, known)
    return Running(fused_graph(path).graph, layers, known)


def float_layers(path: Path) -> list[str]:
    """The `Running.float_layers` of the model at `path`."""
    return running(path).float_layers()


def _layers_by_name(graph: onnx.GraphProto, known: Mapping[str, str]) -> dict[str, str]:
    """The layer that each node computes, by the names that survive fusion: those of its weight, of
    the node and of its output. `known` are the names in the network of lean ones.
    """
    dequantized = {
        node.output[0]: node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"
    }
    layers: dict[str, str] = {}
    for node in graph.node:
        if node.op_type in COMPUTE:
            stored = dequantized.get(node.input[1], node.input[1])
            weight = known.get(stored, stored).removesuffix("_quantized")
            is_named = weight.endswith(".weight")
            output = known.get(node.output[0], node.output[0])
            layer = weight.removesuffix(".weight") if is_named else node.name or output
            keys = [name for name in (node.input[1], node.name, node.output[0]) if name]
            layers.update(dict.fromkeys(keys, layer))
    return layers


def float_tensors(proto: onnx.ModelProto) -> dict[str, int]:
    """Bytes of the float initializers of at least 256 values, by name, the largest first: what
    keeps an int8 file from shrinking.
    """
    kinds = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
    large = [t for t in proto.graph.initializer if t.data_type in kinds and np.prod(t.dims) >= 256]
    sizes = {tensor.name: len(tensor.raw_data) or 4 * len(tensor.float_data) for tensor in large}
    scales = {
        name
        for node in proto.graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear")
        for name in node.input[1:2]
    }
    weights = [(name, size) for name, size in sizes.items() if name not in scales]
    return dict(sorted(weights, key=lambda pair: -pair[1]))
