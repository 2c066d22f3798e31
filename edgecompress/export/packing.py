"""Weights of few different values in 1, 2 or 4 bits each, and zeros in a bitmap; a stock ONNX
Runtime computes them in int8.

An int8 weight that has at most 16 different values is stored as codes, several in a byte, and a
codebook of the values. Nodes of standard ONNX (opset 11 on) make the int8 tensor of it again: they
read constants only, so the runtime computes them once, when it loads the file, and then runs the
same graph as that of the int8 file.

    codes (n,) uint8 -> BitShift left, right -> (n, codes in a byte) -> Gather(codebook) -> weights
    mask  (n,) uint8 -> .. 0 or 1 -> CumSum * mask -> Gather(0, survivors) -> weights

Small tensors share one stream of bytes, since nodes and shapes cost more than their weights.
Nothing is lost: the storage follows from the values, whoever chose them.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from edgecompress.export.integer import remove_unread
from edgecompress.measure.runtime import Array

GRIDS: dict[int, Array] = {
    4: np.arange(-8, 8, dtype=np.int8),
    2: np.array([-3, -1, 1, 3], np.int8),
    1: np.array([-1, 1], np.int8),
}
"""The int8 values of each width of code, where a tensor needs no codebook of its own."""
LARGE = 1 << 16
"""A tensor of more values has a stream of its own: what is unpacked at once is held as int32."""
NODE = 30
"""Bytes that a node of a lean file takes, about; a tensor of few values is not worth several."""


@dataclass(frozen=True)
class Stored:
    """How the weight of a `layer` is stored: the bits of a code (8: as it is), with a bitmap of
    zeros or not, and the bytes of its values, of which it has `count`.
    """

    name: str
    bits: int
    has_mask: bool
    bytes: int
    count: int

    @property
    def layer(self) -> str:
        """The layer in the network."""
        return self.name.removesuffix("_quantized").removesuffix(".weight")

    @property
    def text(self) -> str:
        """`4-bit codes`, `bitmap and 2-bit codes`, `int8`."""
        codes = "int8" if self.bits == 8 else f"{self.bits}-bit codes"
        return f"bitmap and {codes}" if self.has_mask else codes


def as_int8(stored: Stored) -> Stored:
    """The same weight, stored as it is."""
    return replace(stored, bits=8, has_mask=False, bytes=stored.count)


def packed(
    proto: onnx.ModelProto, *, certain: bool = False
) -> tuple[onnx.ModelProto, list[Stored]]:
    """A copy of `proto` in which every int8 weight is stored in the fewest bytes, and how each
    is. With `certain` only on the grids of `GRIDS`: zeros and codebooks may change in a training.
    """
    proto = copy.deepcopy(proto)
    graph = proto.graph
    given = {value.name for value in graph.input}
    weights = [t for t in graph.initializer if _is_weight(t) and t.name not in given]
    streams: dict[tuple[bool, bytes, str], list[TensorProto]] = {}
    stored = []
    for tensor in weights:
        values = numpy_helper.to_array(tensor)
        how, book = _cheapest(tensor.name, values, certain)
        stored.append(how)
        if how.bits == 8 and not how.has_mask:
            continue
        alone = tensor.name if values.size > LARGE else ""
        streams.setdefault((how.has_mask, book.tobytes(), alone), []).append(tensor)
    made = list[NodeProto]()
    for number, ((has_mask, book_bytes, _), tensors) in enumerate(streams.items()):
        book = np.frombuffer(book_bytes, np.int8)
        made += _Stream(graph, f"edgecompress/stream{number}", book).nodes_for(tensors, has_mask)
    if made:
        nodes = [copy.deepcopy(node) for node in graph.node]
        del graph.node[:]
        graph.node.extend([*made, *nodes])
        gone = {name for node in made for name in node.output}
        kept = [copy.deepcopy(t) for t in graph.initializer if t.name not in gone]
        del graph.initializer[:]
        graph.initializer.extend(kept)
        remove_unread(graph)
    return proto, stored


def _is_weight(tensor: TensorProto) -> bool:
    """Is it a weight in int8, of more values than a zero point has?"""
    return bool(tensor.data_type == TensorProto.INT8 and len(tensor.dims) > 1)


def _cheapest(name: str, values: Array, certain: bool) -> tuple[Stored, Array]:
    """How `values` int8 take the fewest bytes, and their codebook (empty: none)."""
    as_they_are = np.zeros(0, np.int8)
    ways = [(values.size, Stored(name, 8, False, values.size, values.size), as_they_are)]
    for has_mask, kept in ((False, values), (True, values[values != 0])):
        for bits, book in ((8, as_they_are), _codes(kept)):
            size = -(-kept.size * bits // 8) + has_mask * -(-values.size // 8)
            if certain and (has_mask or not _on_a_grid(bits, book)):
                continue
            own = len(book) and not np.array_equal(book, GRIDS[bits])
            nodes = 2 + 6 * has_mask + 6 * bool(own)
            ways.append(
                (size + nodes * NODE, Stored(name, bits, has_mask, size, values.size), book)
            )
    _, how, book = min(ways, key=lambda way: way[0])
    return how, book


def _on_a_grid(bits: int, book: Array) -> bool:
    return bits in (2, 4) and np.array_equal(book, GRIDS[bits])


def _codes(values: Array) -> tuple[int, Array]:
    """The fewest bits that tell `values` apart, and the codebook: a grid where it has them all."""
    different = np.unique(values)
    for bits in (1, 2, 4):
        if np.isin(different, GRIDS[bits]).all():
            return bits, GRIDS[bits]
        if len(different) <= 1 << bits:
            book = np.zeros(1 << bits, np.int8)
            book[: len(different)] = different
            return bits, book
    return 8, np.zeros(0, np.int8)


class _Stream:
    """The constants and nodes that make tensors of one `book` (empty: values as they are) from one
    stream of bytes.
    """

    def __init__(self, graph: onnx.GraphProto, name: str, book: Array) -> None:
        self.graph = graph
        self.name = name
        self.book = book
        self.nodes: list[NodeProto] = []

    def nodes_for(self, tensors: Sequence[TensorProto], has_mask: bool) -> list[NodeProto]:
        """Nodes whose outputs are `tensors` by name; the constants go into the graph."""
        arrays = [numpy_helper.to_array(tensor) for tensor in tensors]
        values = np.concatenate([array.ravel() for array in arrays])
        flat, count = self._spread(values) if has_mask else self._looked_up(values)
        self._split(flat, count, tensors)
        return self.nodes

    def _constant(self, name: str, value: Array) -> str:
        full = f"{self.name}.{name}"
        self.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), full))
        return full

    def _node(self, operator: str, *inputs: str, **attributes: object) -> str:
        output = f"{self.name}.{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [output], **attributes))
        return output

    def _unpacked(self, name: str, codes: Array, bits: int) -> tuple[str, int]:
        """The int32 tensor of `codes` below 2 ** `bits`, flat, and how many it has: a multiple of
        those in a byte.
        """
        per = 8 // bits
        whole = np.pad(codes, (0, -len(codes) % per)).reshape(-1, per)
        shifts = np.arange(per, dtype=np.uint8) * bits
        octets = np.bitwise_or.reduce(whole.astype(np.uint8) << shifts, axis=1).astype(np.uint8)
        stored = self._constant(name, octets.reshape(-1, 1))
        left = self._constant(f"{name}.left", (8 - bits - shifts).reshape(1, -1))
        right = self._constant(f"{name}.right", np.array([8 - bits], np.uint8))
        moved = self._node("BitShift", stored, left, direction="LEFT")
        alone = self._node("BitShift", moved, right, direction="RIGHT")
        wide = self._node("Cast", alone, to=TensorProto.INT32)
        flat = self._constant(f"{name}.flat", np.array([-1], np.int64))
        return self._node("Reshape", wide, flat), whole.size

    def _looked_up(self, values: Array) -> tuple[str, int]:
        """The int8 tensor of `values`, stored as codes or as it is; flat."""
        if not len(self.book):
            return self._constant("values", values), len(values)
        codes = np.zeros(len(values), np.uint8)
        for code, value in enumerate(self.book):
            codes[values == value] = code
        bits = int(np.log2(len(self.book)))
        unpacked, count = self._unpacked("codes", codes, bits)
        return self._node("Gather", self._constant("book", self.book), unpacked), count

    def _spread(self, values: Array) -> tuple[str, int]:
        """The int8 tensor of `values`, stored as a bitmap and those that are not 0; flat."""
        mask, count = self._unpacked("mask", (values != 0).astype(np.uint8), 1)
        survivors, _ = self._looked_up(values[values != 0])
        zero = self._constant("zero", np.zeros(1, np.int8))
        table = self._node("Concat", zero, survivors, axis=0)
        places = self._node("CumSum", mask, self._constant("axis", np.array(0, np.int32)))
        return self._node("Gather", table, self._node("Mul", places, mask)), count

    def _split(self, flat: str, count: int, tensors: Sequence[TensorProto]) -> None:
        """Cut the first values of `flat`, which has `count`, into `tensors`."""
        sizes = [int(np.prod(tensor.dims)) for tensor in tensors]
        parts = [flat]
        if len(tensors) > 1 or sizes[0] != count:
            rest = count - sum(sizes)
            lengths = [*sizes, rest] if rest else sizes
            parts = [f"{self.name}.part{number}" for number in range(len(lengths))]
            split = self._constant("sizes", np.array(lengths, np.int64))
            self.nodes.append(helper.make_node("Split", [flat, split], parts, axis=0))
        for part, tensor in zip(parts, tensors, strict=False):
            shape = self._constant(f"shape.{tensor.name}", np.array(tensor.dims, np.int64))
            self.nodes.append(helper.make_node("Reshape", [part, shape], [tensor.name]))
