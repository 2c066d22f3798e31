"""Multiply-accumulates (MACs) of an ONNX file: of every convolution, matrix product and recurrent
layer in its graph, float and int8 alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import onnx

Shape = list[int]
Shapes = Mapping[str, Shape]
"""The shape of each tensor, by name; 0 for a size that is not known."""


class UnknownShapeError(Exception):
    """A shape that a count needs is not known."""


def macs(path: Path) -> int | None:
    """MACs of one sample; None where a shape is unknown, or a product stands inside a loop or a
    branch.
    """
    proto = onnx.load(str(path))
    for size in proto.graph.input[0].type.tensor_type.shape.dim[:1]:
        size.dim_value = 1
    try:
        graph = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
        shapes = _shapes(graph)
        return sum(_node_macs(node, shapes) for node in graph.node)
    except (onnx.shape_inference.InferenceError, RuntimeError, UnknownShapeError):
        return None


def _shapes(graph: onnx.GraphProto) -> Shapes:
    values = (*graph.value_info, *graph.output, *graph.input)
    return {
        **{
            value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
            for value in values
            if value.type.tensor_type.HasField("shape")
        },
        **{tensor.name: list(tensor.dims) for tensor in graph.initializer},
    }


def _node_macs(node: onnx.NodeProto, shapes: Shapes) -> int:
    """MACs of one operation. Raises `UnknownShapeError`."""
    if any(_multiplies(a.g) for a in node.attribute if a.type == onnx.AttributeProto.GRAPH):
        raise UnknownShapeError(node.name)
    count = _COUNTS.get(node.op_type)
    return 0 if count is None else count(node, shapes)


def _multiplies(graph: onnx.GraphProto) -> bool:
    """Does an operation that is counted stand in a subgraph?"""
    return any(
        node.op_type in _COUNTS
        or any(_multiplies(a.g) for a in node.attribute if a.type == onnx.AttributeProto.GRAPH)
        for node in graph.node
    )


def _known(shapes: Shapes, name: str) -> Shape:
    """The complete shape of a tensor. Raises `UnknownShapeError`."""
    shape = shapes.get(name)
    if shape is None or 0 in shape:
        raise UnknownShapeError(name)
    return shape


def _convolution(weight: int) -> Callable[[onnx.NodeProto, Shapes], int]:
    """Every output applies the weights of its channel; the weight is input number `weight`."""
    return lambda node, shapes: (
        math.prod(_known(shapes, node.output[0]))
        * math.prod(_known(shapes, node.input[weight])[1:])
    )


def _transposed(node: onnx.NodeProto, shapes: Shapes) -> int:
    """Every input applies the weights of its channel, (in, out / groups, *kernel)."""
    source, weight = (_known(shapes, name) for name in node.input[:2])
    return math.prod(source) * math.prod(weight[1:])


def _product(node: onnx.NodeProto, shapes: Shapes) -> int:
    """Every output (..., N) is a sum over the last axis of the left factor (..., M, K)."""
    return math.prod(_known(shapes, node.output[0])) * _known(shapes, node.input[0])[-1]


def _gemm(node: onnx.NodeProto, shapes: Shapes) -> int:
    transposed = any(a.name == "transA" and a.i for a in node.attribute)
    left = _known(shapes, node.input[0])
    return math.prod(_known(shapes, node.output[0])) * left[0 if transposed else -1]


def _recurrent(node: onnx.NodeProto, shapes: Shapes) -> int:
    """Every step applies both weights, (directions, gates * hidden, inputs) and (directions, gates
    * hidden, hidden), to the sequence (steps, N, inputs), or (N, steps, inputs).
    """
    inputs, hidden = (_known(shapes, name) for name in node.input[1:3])
    source = shapes.get(node.input[0], [0])
    if 0 in source[:2]:
        raise UnknownShapeError(node.input[0])
    return math.prod(source[:2]) * (math.prod(inputs) + math.prod(hidden))


def _einsum(node: onnx.NodeProto, shapes: Shapes) -> int:
    """One product of all factors for each combination of the indices."""
    equation = next(a.s.decode() for a in node.attribute if a.name == "equation")
    terms = equation.replace(" ", "").split("->")[0].split(",")
    if len(terms) < 2:
        return 0
    if "." in equation:
        raise UnknownShapeError(node.name)
    sizes: dict[str, int] = {}
    for term, name in zip(terms, node.input, strict=True):
        sizes.update(zip(term, _known(shapes, name), strict=True))
    return (len(terms) - 1) * math.prod(sizes.values())


_COUNTS: dict[str, Callable[[onnx.NodeProto, Shapes], int]] = {
    "Conv": _convolution(1),
    "ConvInteger": _convolution(1),
    "QLinearConv": _convolution(3),
    "ConvTranspose": _transposed,
    "MatMul": _product,
    "MatMulInteger": _product,
    "QLinearMatMul": _product,
    "Gemm": _gemm,
    "QGemm": _gemm,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
    "Einsum": _einsum,
}
"""Operations that multiply and accumulate."""
