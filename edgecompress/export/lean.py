"""A lean file: every byte that is not a weight costs accuracy where the size is bounded.

What ships has names of one or two letters, each constant once, no attribute that says its default,
no zero point of a bias, which is 0, and weights in as few bits as their values need (`packing`).
`names.json` beside the file has the names of the network, so that errors and tables speak in these.
The file computes the same to the last bit.
"""

from __future__ import annotations

import copy
import functools
import itertools
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, NodeProto, TensorProto, helper, numpy_helper

from edgecompress.export.integer import links, remove_unread, with_integer_convolutions
from edgecompress.export.narrow import narrowed
from edgecompress.export.onnx import opset_of, save
from edgecompress.export.packing import Stored, as_int8, packed
from edgecompress.measure import names as long_names

CONVOLUTIONS = ("Conv", "ConvTranspose", "QLinearConv")
EXPANDED = 64
"""A vector of zeros with more values than this costs more than the node that makes it."""
PACKED_OPSET = 15
"""ONNX Runtime 1.8, which reads opset 14, cannot split int8."""
LETTERS = string.ascii_letters + string.digits


def lean(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, str]]:
    """A lean copy of `proto`, and the former name of each of its values.

    Names of inputs and outputs stay, as do metadata.
    """
    proto = copy.deepcopy(proto)
    graph = proto.graph
    for node in graph.node:
        _drop_defaults(node, proto)
    _drop_zero_points_of_biases(graph)
    _share_constants(graph)
    remove_unread(graph)
    _expand_zeros(graph)
    del graph.value_info[:]
    graph.name = "g"
    names = _shorten(graph)
    return proto, names


@dataclass(frozen=True)
class Shipped:
    """A lean model, the former name of each of its values, and how its int8 weights are stored."""

    proto: onnx.ModelProto
    names: dict[str, str]
    stored: tuple[Stored, ...]


def shipped(proto: onnx.ModelProto, *, certain: bool = False) -> Shipped:
    """`proto` as it ships: the smallest of the ways to write it; with `certain` only those whose
    bytes stay when a training moves the values on their grids.
    """
    attributes = (one for node in proto.graph.node for one in node.attribute)
    if any(one.HasField("g") or one.graphs for one in attributes):
        return Shipped(proto, {}, ())  # names cross the border of a subgraph
    plain = with_integer_convolutions(proto)
    _drop_zero_points_of_biases(plain.graph)
    remove_unread(plain.graph)
    small, stored = packed(plain, certain=certain)
    best = Shipped(*lean(plain), tuple(as_int8(one) for one in stored))
    if not stored or opset_of(proto) < PACKED_OPSET:
        return best
    for way in (small, narrowed(small, certain=certain)):
        other = Shipped(*lean(way), tuple(stored))
        if other.proto.ByteSize() < best.proto.ByteSize():
            best = other
    return best


def write(proto: onnx.ModelProto, path: Path, like: Path | None = None) -> Shipped:
    """Write `proto` as it ships to `path`, and its names beside it.

    `like` is the file that it was made of, where that is lean already.
    """
    made = shipped(proto)
    known = {} if like is None else long_names.recorded(like)
    save(made.proto, path)
    long_names.record(path, {short: known.get(name, name) for short, name in made.names.items()})
    return made


def overhead(proto: onnx.ModelProto) -> int:
    """Bytes of `proto` that are no values of weights, biases and their scales: the fixed cost of
    its graph.
    """
    zeros = {name for node in proto.graph.node for name in _zero_points(node)}
    values = sum(
        len(raw_values(tensor)) for tensor in proto.graph.initializer if tensor.name not in zeros
    )
    return int(proto.ByteSize()) - values


def raw_values(tensor: TensorProto) -> bytes:
    """The values of a constant as the file stores them."""
    return bytes(tensor.raw_data) or numpy_helper.to_array(tensor).tobytes()


def _zero_points(node: NodeProto) -> list[str]:
    """Names of the zero points that `node` reads."""
    places: tuple[int, ...] = ()
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        places = (2,)
    elif node.op_type == "QLinearConv":
        places = (2, 5, 7)
    return [node.input[place] for place in places if place < len(node.input)]


@functools.cache
def _default_attributes(operator: str, opset: int) -> dict[str, Any]:
    """Values of the attributes of an operator of standard ONNX that need not be written."""
    try:
        schema = onnx.defs.get_schema(operator, opset, "")
    except onnx.defs.SchemaError:
        return {}
    return {
        name: helper.get_attribute_value(attribute.default_value)
        for name, attribute in schema.attributes.items()
        if attribute.default_value.type != AttributeProto.UNDEFINED
    }


def _drop_defaults(node: NodeProto, proto: onnx.ModelProto) -> None:
    """Remove in place the attributes of `node` that say what holds without them."""
    if node.domain not in ("", "ai.onnx"):
        return
    defaults = _default_attributes(node.op_type, opset_of(proto))
    kept = [a for a in node.attribute if not _is_default(node, a, defaults)]
    del node.attribute[:]
    node.attribute.extend(kept)


def _is_default(node: NodeProto, attribute: AttributeProto, defaults: dict[str, Any]) -> bool:
    value = helper.get_attribute_value(attribute)
    if attribute.name in defaults:
        return bool(value == defaults[attribute.name])
    if node.op_type not in CONVOLUTIONS:
        return False
    if attribute.name == "kernel_shape":
        return True  # that of the weight
    if attribute.name in ("strides", "dilations"):
        return all(size == 1 for size in value)
    return attribute.name == "pads" and not any(value)


def _drop_zero_points_of_biases(graph: onnx.GraphProto) -> None:
    """Biases are int32 around 0, which is what holds without a zero point. (ONNX Runtime up to
    1.23 needs the zero points of weights, which are 0 too.)
    """
    known = links(graph)
    for node in graph.node:
        if node.op_type != "DequantizeLinear":
            continue
        zero = known.value(node, 2)
        stored = known.constants.get(node.input[0])
        is_bias = stored is not None and stored.data_type == TensorProto.INT32
        if zero is not None and is_bias and not zero.any():
            del node.input[2:]


def _share_constants(graph: onnx.GraphProto) -> None:
    """Equal constants become one."""
    first: dict[object, str] = {}
    same: dict[str, str] = {}
    given = {value.name for value in graph.input}
    for tensor in graph.initializer:
        if tensor.name in given or tensor.data_type == TensorProto.STRING:
            continue
        key = (tensor.data_type, tuple(tensor.dims), raw_values(tensor))
        same[tensor.name] = first.setdefault(key, tensor.name)
    outputs = {value.name for value in graph.output}
    for node in graph.node:
        shared = [name if name in outputs else same.get(name, name) for name in node.input]
        node.input[:] = shared


def _expand_zeros(graph: onnx.GraphProto) -> None:
    """Zero points of more bytes than the node that makes them: one zero, expanded at load."""
    for tensor in [*graph.initializer]:
        is_long = tensor.data_type == TensorProto.INT8 and len(tensor.dims) == 1
        if not is_long or tensor.dims[0] <= EXPANDED or any(raw_values(tensor)):
            continue
        name, shape = tensor.name, np.array(tensor.dims, np.int64)
        zero = numpy_helper.from_array(np.zeros((1,), np.int8), f"{name}.zero")
        tensor.CopyFrom(zero)
        graph.initializer.append(numpy_helper.from_array(shape, f"{name}.size"))
        node = helper.make_node("Expand", [f"{name}.zero", f"{name}.size"], [name])
        graph.node.insert(0, node)


def _short_names(taken: set[str]) -> Iterator[str]:
    """a, b, .., 9, aa, ab, .., without those that are `taken`."""
    for length in itertools.count(1):
        for letters in itertools.product(LETTERS, repeat=length):
            name = "".join(letters)
            if name not in taken:
                yield name


def _shorten(graph: onnx.GraphProto) -> dict[str, str]:
    """Give the values of `graph` short names in place, the most frequent ones the shortest. Returns
    the former name of each.
    """
    fixed = {value.name for value in (*graph.input, *graph.output)}
    counts: dict[str, int] = {}
    for node in graph.node:
        for name in (*node.input, *node.output):
            counts[name] = counts.get(name, 0) + 1
    often = sorted(
        (name for name in counts if name and name not in fixed), key=lambda n: -counts[n]
    )
    short = dict(zip(often, _short_names(fixed), strict=False))
    _rename(graph, short)
    return {new: old for old, new in short.items()}


def _rename(graph: onnx.GraphProto, short: Mapping[str, str]) -> None:
    for node in graph.node:
        node.name = node.doc_string = ""
        node.input[:] = [short.get(name, name) for name in node.input]
        node.output[:] = [short.get(name, name) for name in node.output]
    for tensor in graph.initializer:
        tensor.name = short.get(tensor.name, tensor.name)
