"""The file of a network with other widths, from the graph of one that was exported before.

Cutting channels changes the tensors of a network and the groups of its depthwise convolutions, not
its graph. While widths are chosen for a size in bytes, one export is enough.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx
from torch import nn

MOST_ELEMENTS = 8
"""Of a constant that belongs to the graph: a shape, the borders of a clip. Larger ones may depend
on the widths.
"""
CONV = ("Conv", "ConvTranspose")
DENSE = ("Gemm", "MatMul")


@dataclass(frozen=True)
class Template:
    """A file whose constants are the tensors of its network, by the names of its state dict."""

    proto: onnx.ModelProto
    names: frozenset[str]

    @classmethod
    def of(cls, proto: onnx.ModelProto, model: nn.Module) -> Template | None:
        """From the file `proto` of `model`, whose BatchNorms are folded. None where the exporter
        has merged or computed constants, which then say nothing about those of other widths.
        """
        state = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        known = {one.name: tuple(one.dims) for one in proto.graph.initializer}
        names = {name for name, shape in state.items() if known.get(name) == shape}
        others = [one for one in proto.graph.initializer if one.name not in names]
        raw = all(one.HasField("raw_data") for one in proto.graph.initializer)
        own = any(math.prod(one.dims) > MOST_ELEMENTS for one in others)
        if not raw or own or names != {*state} or _has_subgraphs(proto):
            return None
        if not all(
            _is_of_a_layer(node, model) for node in proto.graph.node if node.op_type in CONV
        ):
            return None
        return cls(proto, frozenset(names))

    def filled(self, model: nn.Module) -> onnx.ModelProto:
        """The file of `model`, the same network with other widths, its BatchNorms folded.

        Raises `ValueError` for a network with other tensors.
        """
        state = model.state_dict()
        if state.keys() != self.names:
            raise ValueError(f"not the same network: {sorted(state.keys() ^ self.names)}")
        made = onnx.ModelProto()
        made.CopyFrom(self.proto)
        for one in made.graph.initializer:
            if one.name in state:
                tensor = state[one.name].detach().cpu().contiguous()
                one.dims[:] = tensor.shape
                one.raw_data = tensor.numpy().tobytes()
        for node in made.graph.node:
            _regroup(node, model)
        _reshape(made.graph)
        return made


def _has_subgraphs(proto: onnx.ModelProto) -> bool:
    attributes = (one for node in proto.graph.node for one in node.attribute)
    return any(one.HasField("g") or one.graphs for one in attributes)


def _is_of_a_layer(node: onnx.NodeProto, model: nn.Module) -> bool:
    """Does a layer with groups of its own hold the weights? Else they are a tensor that the
    network's own code convolves with.
    """
    name, _, _ = node.input[1].rpartition(".")
    layer = dict(model.named_modules()).get(name) if name else None
    return isinstance(getattr(layer, "groups", None), int)


def _regroup(node: onnx.NodeProto, model: nn.Module) -> None:
    """Give a convolution of `model` its number of groups."""
    if node.op_type not in CONV:
        return
    layer = model.get_submodule(node.input[1].rpartition(".")[0])
    for attribute in node.attribute:
        if attribute.name == "group":
            attribute.i = int(layer.groups)  # type: ignore[arg-type]


def _reshape(graph: onnx.GraphProto) -> None:
    """Give each flattening before a fully connected layer the number of inputs of that layer."""
    constants = {one.name: one for one in graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    for node in graph.node:
        shape = constants.get(node.input[1]) if node.op_type == "Reshape" else None
        if shape is None or list(shape.dims) != [2]:
            continue
        reader = node
        while len(readers.get(reader.output[0], ())) == 1 and reader.op_type not in DENSE:
            (reader,) = readers[reader.output[0]]
        weight = constants.get(reader.input[1]) if reader.op_type in DENSE else None
        if weight is not None:
            axis = 1 if any(one.name == "transB" and one.i for one in reader.attribute) else 0
            rows, _ = np.frombuffer(shape.raw_data, np.int64)
            shape.raw_data = np.array([rows, weight.dims[axis]], np.int64).tobytes()
