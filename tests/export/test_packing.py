"""Weights of few values take few bits, and ONNX Runtime computes the same in the same way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgecompress.export import in_float, lean
from edgecompress.export import onnx as onnx_export
from edgecompress.export import quantize as quantizer
from edgecompress.export.integer import with_integer_convolutions
from edgecompress.export.packing import packed
from edgecompress.measure import runtime
from tests.export.models import EXAMPLE, SHAPE, SPEC, network

Values = Callable[[np.random.Generator, tuple[int, ...]], runtime.Array]


def _four(generator: np.random.Generator, shape: tuple[int, ...]) -> runtime.Array:
    return generator.integers(-7, 8, shape)


def _two(generator: np.random.Generator, shape: tuple[int, ...]) -> runtime.Array:
    return 2 * generator.integers(0, 4, shape) - 3


def _sparse(generator: np.random.Generator, shape: tuple[int, ...]) -> runtime.Array:
    return generator.integers(-60, 61, shape) * (generator.random(shape) < 0.2)


def _sparse_four(generator: np.random.Generator, shape: tuple[int, ...]) -> runtime.Array:
    return generator.integers(-7, 8, shape) * (generator.random(shape) < 0.1)


KINDS: dict[str, tuple[Values, str, float]] = {
    "4 bits": (_four, "4-bit codes", 0.55),
    "2 bits": (_two, "2-bit codes", 0.35),
    "80 % zeros": (_sparse, "bitmap and int8", 0.45),
    "90 % zeros": (_sparse_four, "bitmap and 4-bit codes", 0.3),
}
"""Values of weights, how they are stored, and the largest share of the int8 bytes."""


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    path = tmp_path_factory.mktemp("packing") / "fp32.onnx"
    onnx_export.save(onnx_export.to_onnx(network("student3"), EXAMPLE, SPEC.metadata()), path)
    images = np.random.default_rng(0).standard_normal((8, *SHAPE)).astype(np.float32)
    return quantizer.to_int8(path, lambda: [images])


def _with_weights(proto: onnx.ModelProto, values: Values) -> onnx.ModelProto:
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    generator = np.random.default_rng(0)
    for tensor in changed.graph.initializer:
        if tensor.data_type == TensorProto.INT8 and len(tensor.dims) > 1:
            weights = values(generator, tuple(tensor.dims)).astype(np.int8)
            tensor.CopyFrom(numpy_helper.from_array(weights, tensor.name))
    return changed


@pytest.mark.parametrize("kind", KINDS)
def test_few_values_are_few_bytes_and_the_same_network(
    kind: str, int8: onnx.ModelProto, tmp_path: Path
) -> None:
    values, storage, share = KINDS[kind]
    proto = _with_weights(int8, values)
    plain, small = tmp_path / "plain.onnx", tmp_path / "small.onnx"
    onnx_export.save(lean.lean(with_integer_convolutions(proto))[0], plain)
    lean.write(proto, small)
    sizes = {t.name: int(np.prod(t.dims)) for t in proto.graph.initializer}
    large = [one for one in packed(proto)[1] if sizes[one.name] > 2000]
    assert large and {one.text for one in large} == {storage}
    assert small.stat().st_size < share * plain.stat().st_size
    images = np.random.default_rng(1).standard_normal((4, *SHAPE)).astype(np.float32)
    before, after = runtime.load(plain), runtime.load(small)
    np.testing.assert_array_equal(after.run(images), before.run(images))
    graphs = [runtime.fused_graph(path).graph for path in (plain, small)]
    assert sorted(n.op_type for n in graphs[0].node) == sorted(n.op_type for n in graphs[1].node)


def test_eight_bits_stay_as_they_are(int8: onnx.ModelProto) -> None:
    proto, stored = packed(int8)
    large = [one for one in stored if one.bytes > 500]
    assert large and {one.text for one in large} == {"int8"}
    assert {n.op_type for n in proto.graph.node} == {n.op_type for n in int8.graph.node}


def _identity(weights: list[runtime.Array]) -> onnx.ModelProto:
    """A model whose outputs are its int8 constants, times the input 1."""
    nodes, outputs, stored = [], [], []
    for number, weight in enumerate(weights):
        name = f"w{number}"
        stored.append(numpy_helper.from_array(weight, name))
        nodes.append(helper.make_node("Cast", [name], [f"f{number}"], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("Mul", [f"f{number}", "x"], [f"y{number}"]))
        outputs.append(helper.make_tensor_value_info(f"y{number}", TensorProto.FLOAT, weight.shape))
    source = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    graph = helper.make_graph(nodes, "g", [source], outputs, stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 37), st.integers(1, 41), st.integers(1, 20), st.floats(0, 1)),
        min_size=1,
        max_size=4,
    ),
    st.integers(0, 2**32 - 1),
)
def test_whatever_the_values_nothing_is_lost(
    kinds: list[tuple[int, int, int, float]], seed: int
) -> None:
    """Tensors of any size, of `levels` different values, any share of them zero."""
    generator = np.random.default_rng(seed)
    weights = []
    for rows, columns, levels, zeros in kinds:
        choice = generator.integers(-128, 128, levels)
        values = generator.choice(choice, (rows, columns))
        values[generator.random(values.shape) < zeros] = 0
        weights.append(values.astype(np.int8))
    proto, _ = packed(_identity(weights))
    onnx.checker.check_model(proto, full_check=True)
    import onnxruntime

    session = onnxruntime.InferenceSession(
        lean.lean(proto)[0].SerializeToString(), providers=["CPUExecutionProvider"]
    )
    for made, weight in zip(session.run(None, {"x": np.ones(1, np.float32)}), weights, strict=True):
        np.testing.assert_array_equal(made, weight.astype(np.float32))


def test_weights_that_are_unpacked_at_each_run_are_found(
    int8: onnx.ModelProto, tmp_path: Path
) -> None:
    """None of ours; random numbers stand for what a runtime does not fold."""
    few = lean.shipped(_with_weights(int8, _four)).proto
    onnx_export.save(few, tmp_path / "packed.onnx")
    assert in_float.running(tmp_path / "packed.onnx").unpacked_layers() == []
    graph = few.graph
    (conv,) = [n for n in graph.node if n.op_type == "QLinearConv"][1:2]
    drawn = helper.make_node("RandomUniform", [], ["drawn"], shape=(16, 16, 3, 3), high=9.0)
    cast = helper.make_node("Cast", ["drawn"], ["cast"], to=TensorProto.INT8)
    conv.input[3] = "cast"
    graph.node.insert(0, cast)
    graph.node.insert(0, drawn)
    onnx_export.save(few, tmp_path / "drawn.onnx")
    assert len(in_float.running(tmp_path / "drawn.onnx").unpacked_layers()) == 1
