"""What an int8 file does not get of int8: layers that ONNX Runtime has no int8 kernel for, large
tensors in float, weights that it unpacks at each run.
"""

from __future__ import annotations

from collections.abc import Mapping
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


def float_layers(path: Path) -> list[str]:
    """Layers (convolutions, matrix products) of the model at `path` that ONNX Runtime computes in
    float on the CPU.

    These are the layers that the file leaves in float, and those that look quantized but have no
    int8 kernel.
    """
    known = long_names.recorded(path)
    layers = _layers_by_name(onnx.load(str(path)).graph, known)
    in_float = []
    for node in fused_graph(path).graph.node:
        if node.op_type in FLOAT_KERNELS:
            names = (node.name, node.output[0], node.input[1])
            found = [layers[name] for name in names if name in layers]
            unknown = node.name or known.get(node.output[0], node.output[0])
            in_float.append(found[0] if found else unknown)
    return list(dict.fromkeys(in_float))


def unpacked_layers(path: Path) -> list[str]:
    """Layers of the model at `path` whose weights ONNX Runtime computes at each run: it folds what
    depends on constants alone when it loads a file, but not everything.
    """
    known = long_names.recorded(path)
    layers = _layers_by_name(onnx.load(str(path)).graph, known)
    graph = fused_graph(path).graph
    constant = {tensor.name for tensor in graph.initializer}
    computed: set[str] = set()
    found = []
    for node in graph.node:  # in the order in which they run
        if all(name in constant or name in computed for name in node.input if name):
            computed.update(node.output)
        elif computed.intersection(node.input):
            names = (node.name, node.output[0], *node.input)
            unknown = node.name or known.get(node.output[0], node.output[0])
            found.append(next((layers[name] for name in names if name in layers), unknown))
    return list(dict.fromkeys(found))


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
