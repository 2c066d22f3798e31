"""Small ONNX models to measure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def matmuls(
    path: Path, count: int, size: int = 192, *, inputs: int = 192, poison: bool = False
) -> Path:
    """A chain of `count` products with `size` x `size` matrices; `poison` makes its outputs NaN."""
    generator = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(
            (generator.standard_normal((inputs if n == 0 else size, size)) / 14).astype(np.float32),
            f"w{n}",
        )
        for n in range(count)
    ]
    if poison:
        weights[0] = numpy_helper.from_array(
            np.full((inputs, size), np.nan, dtype=np.float32), "w0"
        )
    names = ["x", *(f"h{n}" for n in range(count - 1)), "y"]
    nodes = [helper.make_node("MatMul", [names[n], f"w{n}"], [names[n + 1]]) for n in range(count)]
    shapes = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", s])
        for n, s in (("x", inputs), ("y", size))
    ]
    graph = helper.make_graph(nodes, "chain", shapes[:1], shapes[1:], weights)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path
    )
    return path


def fixed_batch(
    path: Path, batch: object, shape: tuple[object, ...] = (3, 8, 8), kind: int = TensorProto.FLOAT
) -> Path:
    """A model that reads inputs (`batch`, *`shape`) of type `kind`."""
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", kind, [batch, *shape])],
        [helper.make_tensor_value_info("y", kind, None)],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path
    )
    return path


def one_operation(path: Path, kind: str, opset: int = 18) -> Path:
    """A model of one operation of an opset, which reads (batch, 4), and a vector where it needs
    more inputs.
    """
    value = helper.make_tensor_value_info
    more = [f"v{n}" for n in range(4)] if kind == "BatchNormalization" else []
    vectors = [numpy_helper.from_array(np.ones(4, np.float32), name) for name in more]
    graph = helper.make_graph(
        [helper.make_node(kind, ["x", *more], ["y"])],
        "one",
        [value("x", TensorProto.FLOAT, ["batch", 4])],
        [value("y", TensorProto.FLOAT, ["batch", 4])],
        vectors,
    )
    opsets = [helper.make_opsetid("", opset)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), str(path))
    return path
