"""A stand-in for the export of a project: a chain of matrix products as an ONNX file.

python build_model.py build/model.onnx --layers 4
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WIDTH = 192


def build(path: Path, layers: int) -> None:
    """Write a model of `layers` products with 192×192 matrices to `path`."""
    generator = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(
            generator.standard_normal((WIDTH, WIDTH)).astype(np.float32) / 14, f"w{n}"
        )
        for n in range(layers)
    ]
    names = ["x", *(f"h{n}" for n in range(layers - 1)), "y"]
    nodes = [helper.make_node("MatMul", [names[n], f"w{n}"], [names[n + 1]]) for n in range(layers)]
    source, target = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", WIDTH])
        for name in ("x", "y")
    )
    graph = helper.make_graph(nodes, "model", [source], [target], weights)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", type=Path)
    parser.add_argument("--layers", type=int, default=4)
    arguments = parser.parse_args()
    build(arguments.path, arguments.layers)
