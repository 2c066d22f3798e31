"""Scales in fp16 and biases in int16, all of a kind in one constant, where nothing is lost by it.

    numbers (n,) fp16 or int16 -> Cast -> Split -> the vectors, computed once when a runtime loads

A vector takes as many bytes for its header as for a few numbers, and a file of few bits has as many
scales and biases as it has channels.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from edgecompress.measure.runtime import Array

KINDS: dict[int, type[np.generic]] = {TensorProto.FLOAT: np.float16, TensorProto.INT32: np.int16}
"""Types of vectors, and what they are stored as."""
PLACES = {"QLinearConv": (4, 8), "DequantizeLinear": (0, 1)}
"""Inputs that are scales or biases, by operator."""
FEWEST = 4
"""With fewer vectors the nodes take more than they save."""


def narrowed(proto: onnx.ModelProto, *, certain: bool = False) -> onnx.ModelProto:
    """A copy of `proto` whose vectors are stored in half of their bytes, where these hold them;
    with `certain` scales only, since biases may grow in a training.
    """
    proto = copy.deepcopy(proto)
    graph = proto.graph
    free = _of_channels(graph)
    nodes: list[NodeProto] = []
    gone: set[str] = set()
    constants: list[TensorProto] = []
    for kind, small in KINDS.items():
        if certain and kind == TensorProto.INT32:
            continue
        vectors = [t for t in graph.initializer if t.name in free and _fits(t, kind, small)]
        if len(vectors) < FEWEST:
            continue
        gone.update(tensor.name for tensor in vectors)
        made, stored = _stream(vectors, kind, small)
        nodes += made
        constants += stored
    if not nodes:
        return proto
    kept = [copy.deepcopy(tensor) for tensor in graph.initializer if tensor.name not in gone]
    del graph.initializer[:]
    graph.initializer.extend([*kept, *constants])
    others = [copy.deepcopy(node) for node in graph.node]
    del graph.node[:]
    graph.node.extend([*nodes, *others])
    return proto


def _of_channels(graph: onnx.GraphProto) -> set[str]:
    """Names of what is read as a scale or a bias of channels only: shapes and indices must stay
    constants for those who infer shapes.
    """
    read: dict[str, bool] = {}
    for node in graph.node:
        places = PLACES.get(node.op_type, ())
        for place, name in enumerate(node.input):
            read[name] = read.get(name, True) and place in places
    return {name for name, only in read.items() if only}


def _fits(tensor: TensorProto, kind: int, small: type[np.generic]) -> bool:
    """Is it a vector of this type whose values the smaller type has, too?"""
    if tensor.data_type != kind or len(tensor.dims) != 1 or tensor.dims[0] < 2:
        return False
    values: Array = numpy_helper.to_array(tensor)
    with np.errstate(over="ignore"):
        return bool((values.astype(small).astype(values.dtype) == values).all())


def _stream(
    vectors: Sequence[TensorProto], kind: int, small: type[np.generic]
) -> tuple[list[NodeProto], list[TensorProto]]:
    """The nodes whose outputs are `vectors` by name, and their constants."""
    name = f"edgecompress/{np.dtype(small).name}s"
    values = np.concatenate([numpy_helper.to_array(tensor) for tensor in vectors])
    sizes = np.array([tensor.dims[0] for tensor in vectors])
    short = np.uint8 if sizes.max() < 256 else np.int32
    stored = [
        numpy_helper.from_array(values.astype(small), name),
        numpy_helper.from_array(sizes.astype(short), f"{name}.sizes"),
    ]
    nodes = [
        helper.make_node("Cast", [name], [f"{name}.wide"], to=kind),
        helper.make_node("Cast", [f"{name}.sizes"], [f"{name}.lengths"], to=TensorProto.INT64),
        helper.make_node(
            "Split", [f"{name}.wide", f"{name}.lengths"], [tensor.name for tensor in vectors]
        ),
    ]
    return nodes, stored
