"""Convolutions of an int8 file as single operators: `QLinearConv` of standard ONNX in place of five
nodes.

    DequantizeLinear (input, weight, bias) -> Conv -> QuantizeLinear    becomes    QLinearConv

This is what ONNX Runtime makes of the five when it loads them, so outputs and speed are the same.
It needs neither the scales of the biases, which follow from those of input and weight, nor a zero
point for each output channel: four to nine bytes per channel, and half of the bytes of the graph.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from edgecompress.measure.runtime import Array

ZERO = "edgecompress/weight_zero_point"
"""Name of the zero point that all weights share."""
CLOSE = 1e-5
"""Largest relative difference between the scale of a bias and the product of those of input and
weight.
"""


@dataclass(frozen=True)
class Links:
    """What a graph joins: constants by name, the node that makes a value, and those that read
    it.
    """

    constants: Mapping[str, TensorProto]
    maker: Mapping[str, NodeProto]
    readers: Mapping[str, Sequence[NodeProto]]
    outputs: frozenset[str]

    def value(self, node: NodeProto, place: int) -> Array | None:
        """The constant (...) that `node` reads at `place`, None where there is none."""
        if place >= len(node.input) or node.input[place] not in self.constants:
            return None
        value: Array = numpy_helper.to_array(self.constants[node.input[place]])
        return value


def links(graph: onnx.GraphProto) -> Links:
    """The links of `graph`, as it stands."""
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    return Links(
        {tensor.name: tensor for tensor in graph.initializer},
        {name: node for node in graph.node for name in node.output},
        readers,
        frozenset(value.name for value in graph.output),
    )


def with_integer_convolutions(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `proto` with a `QLinearConv` for each convolution that reads and gives quantized
    values; what nothing reads any more is left out.
    """
    proto = copy.deepcopy(proto)
    graph = proto.graph
    known = links(graph)
    nodes, quantizers = list[NodeProto](), set[str]()
    for node in graph.node:
        joined = _joined(node, known) if node.op_type == "Conv" else None
        if joined is not None:
            quantizers.add(joined.output[0])
        nodes.append(node if joined is None else joined)
    if not quantizers:
        return proto
    kept = [
        node
        for node in nodes
        if node.op_type != "QuantizeLinear" or node.output[0] not in quantizers
    ]
    kept = [copy.deepcopy(node) for node in kept]
    del graph.node[:]
    graph.node.extend(kept)
    graph.initializer.append(numpy_helper.from_array(np.int8(0), ZERO))
    remove_unread(graph)
    return proto


def remove_unread(graph: onnx.GraphProto) -> None:
    """Remove in place the nodes and constants of `graph` that no output depends on."""
    read = {value.name for value in graph.output}
    nodes = []
    for node in reversed(graph.node):
        if any(name in read for name in node.output):
            read.update(node.input)
            nodes.append(copy.deepcopy(node))
    constants = [copy.deepcopy(tensor) for tensor in graph.initializer if tensor.name in read]
    del graph.node[:]
    graph.node.extend(reversed(nodes))
    del graph.initializer[:]
    graph.initializer.extend(constants)


def _joined(node: NodeProto, known: Links) -> NodeProto | None:
    """The `QLinearConv` that computes what the convolution `node` does, and its quantization; None
    where not all that it reads and gives is quantized so that it can.
    """
    sources = [known.maker.get(name) for name in node.input]
    after = known.readers.get(node.output[0], ())
    if len(after) != 1 or node.output[0] in known.outputs:
        return None
    quantizer = after[0]
    if quantizer.op_type != "QuantizeLinear" or not _is_scalar(quantizer, known):
        return None
    dequantizers = [s for s in sources if s is not None and s.op_type == "DequantizeLinear"]
    if len(dequantizers) != len(sources) or not _is_scalar(dequantizers[0], known):
        return None
    source, weight, *bias = dequantizers
    if not _is_centred(weight, known, TensorProto.INT8) or not _fits(source, weight, bias, known):
        return None
    joined = helper.make_node(
        "QLinearConv",
        [*source.input, *weight.input[:2], ZERO, *quantizer.input[1:], *[b.input[0] for b in bias]],
        [quantizer.output[0]],
        name=node.name,
    )
    joined.attribute.extend(node.attribute)
    return joined


def _is_scalar(node: NodeProto, known: Links) -> bool:
    """Has `node` one scale and one uint8 zero point, both constant?"""
    scale, zero = known.value(node, 1), known.value(node, 2)
    if scale is None or zero is None:
        return False
    return scale.size == 1 and zero.size == 1 and zero.dtype == np.uint8


def _is_centred(node: NodeProto, known: Links, kind: int) -> bool:
    """Does `node` dequantize a constant of this type whose zero points are all 0, along its first
    axis?
    """
    stored = known.constants.get(node.input[0])
    zero = known.value(node, 2)
    axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
    scale = known.value(node, 1)
    if stored is None or scale is None or stored.data_type != kind:
        return False
    known_zero = len(node.input) < 3 or (zero is not None and not zero.any())
    return known_zero and (scale.ndim == 0 or axis == 0)


def _fits(source: NodeProto, weight: NodeProto, bias: Sequence[NodeProto], known: Links) -> bool:
    """Is there no bias, or one that is stored in units of the products?"""
    if not bias:
        return True
    x, w, b = (known.value(node, 1) for node in (source, weight, bias[0]))
    if x is None or w is None or b is None or not _is_centred(bias[0], known, TensorProto.INT32):
        return False
    return bool(np.allclose(b, x * w, rtol=CLOSE, atol=0))
