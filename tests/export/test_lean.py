"""What ships is lean: the same outputs to the last bit, and few bytes that are no weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from edgecompress.export import fp16, in_float, lean
from edgecompress.export import onnx as onnx_export
from edgecompress.export import quantize as quantizer
from edgecompress.export.integer import with_integer_convolutions
from edgecompress.formats import ORDINARY
from edgecompress.measure import names, onnx_macs, runtime
from edgecompress.models.registry import ModelSource, build
from tests.export.models import EXAMPLE, SHAPE, SPEC, network

TOPOLOGIES = ("lenet5", "student3", "resnet20", "mobilenet_v2")


def _images(count: int = 8, seed: int = 0) -> runtime.Array:
    return np.random.default_rng(seed).standard_normal((count, *SHAPE)).astype(np.float32)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """Each narrow topology in each format, with long names."""
    folder = tmp_path_factory.mktemp("lean")
    made = {}
    for topology in TOPOLOGIES:
        paths = {form: folder / f"{topology}-{form}.onnx" for form in ORDINARY}
        proto = onnx_export.to_onnx(network(topology), EXAMPLE, SPEC.metadata())
        onnx_export.save(proto, paths["fp32"])
        onnx_export.save(fp16.to_fp16(paths["fp32"]), paths["fp16"])
        onnx_export.save(quantizer.to_int8(paths["fp32"], lambda: [_images()]), paths["int8-qdq"])
        made.update({(topology, form): path for form, path in paths.items()})
    return made


@pytest.mark.parametrize("form", ORDINARY)
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_a_lean_file_computes_the_same_to_the_last_bit(
    topology: str, form: str, files: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    path, small = files[topology, form], tmp_path / "small.onnx"
    lean.write(onnx.load(str(path)), small)
    assert small.stat().st_size < path.stat().st_size
    images = _images(5, seed=1)
    before, after = runtime.load(path), runtime.load(small)
    np.testing.assert_array_equal(after.run(images), before.run(images))
    assert after.metadata.entries == before.metadata.entries
    assert onnx_macs.macs(small) == onnx_macs.macs(path) is not None


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_the_runtime_runs_the_same_operators(
    topology: str, files: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    path, small = files[topology, "int8-qdq"], tmp_path / "small.onnx"
    lean.write(onnx.load(str(path)), small)
    graphs = [runtime.fused_graph(one).graph for one in (path, small)]
    before, after = (sorted(node.op_type for node in graph.node) for graph in graphs)
    assert after == before
    assert "QLinearConv" in {node.op_type for node in onnx.load(str(small)).graph.node}


@pytest.mark.parametrize(
    ("name", "bar"), [("resnet20", 6_000), ("mobilenet_v2", 14_000), ("vgg16", 5_000)]
)
def test_the_fixed_cost_of_an_int8_file(name: str, bar: int, tmp_path: Path) -> None:
    """Of networks with few channels: a graph costs the same at all widths."""
    model = build(ModelSource(name, 10, SHAPE)).eval() if name != "vgg16" else network("vgg16")
    fp32, int8 = tmp_path / "fp32.onnx", tmp_path / "int8.onnx"
    onnx_export.save(onnx_export.to_onnx(model, EXAMPLE, SPEC.metadata()), fp32)
    lean.write(quantizer.to_int8(fp32, lambda: [_images(2)]), int8)
    assert lean.overhead(onnx.load(str(int8))) <= bar


def test_names_lead_back_to_the_network(files: dict[tuple[str, str], Path], tmp_path: Path) -> None:
    path, small = files["resnet20", "fp32"], tmp_path / "small.onnx"
    lean.write(onnx.load(str(path)), small)
    graph = onnx.load(str(small)).graph
    assert max(len(tensor.name) for tensor in graph.initializer) <= 2
    known = names.recorded(small)
    assert {known[tensor.name] for tensor in graph.initializer} <= {
        tensor.name for tensor in onnx.load(str(path)).graph.initializer
    }
    assert in_float.float_layers(small) == in_float.float_layers(path)
    again = tmp_path / "again.onnx"
    lean.write(onnx.load(str(small)), again, like=small)
    assert in_float.float_layers(again) == in_float.float_layers(path)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_a_lean_file_cannot_be_made_leaner(
    topology: str, files: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    """The bytes that formats are compared by are those that ship."""
    paths = [tmp_path / "once.onnx", tmp_path / "twice.onnx"]
    lean.write(onnx.load(str(files[topology, "int8-qdq"])), paths[0])
    lean.write(onnx.load(str(paths[0])), paths[1])
    once, twice = (path.stat().st_size for path in paths)
    assert once == twice


def test_names_of_another_file_are_not_believed(
    files: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    small = tmp_path / "small.onnx"
    lean.write(onnx.load(str(files["resnet20", "fp32"])), small)
    assert names.recorded(small)
    small.write_bytes(files["lenet5", "fp32"].read_bytes())
    assert names.recorded(small) == {}
    (tmp_path / names.NAME).write_text("{")
    assert names.recorded(small) == {}


def test_what_is_no_default_stays(tmp_path: Path) -> None:
    """Strides, pads, dilations and groups that matter; a Gemm with factors."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4),
        nn.ConvTranspose2d(4, 2, 2, stride=2),
        nn.MaxPool2d(3, stride=2, padding=1),
        nn.Flatten(),
        nn.Linear(512, 10),
    ).eval()
    proto = onnx_export.to_onnx(model, EXAMPLE)
    small, _ = lean.lean(proto)
    onnx_export.save(proto, tmp_path / "a.onnx")
    onnx_export.save(small, tmp_path / "b.onnx")
    images = _images(3)
    before, after = (runtime.load(tmp_path / f"{name}.onnx").run(images) for name in "ab")
    np.testing.assert_array_equal(after, before)


def _quantized_convolution(bias_scale: float = 0.02, readers: int = 1) -> onnx.ModelProto:
    """DequantizeLinear (input, weight, bias) -> Conv -> QuantizeLinear, `readers` times."""
    generator = np.random.default_rng(0)
    weight = generator.integers(-64, 64, (4, 3, 1, 1)).astype(np.int8)
    constants = {
        "w": weight,
        "ws": np.full(4, 0.2, np.float32),
        "b": generator.integers(-900, 900, 4).astype(np.int32),
        "bs": np.full(4, bias_scale, np.float32),
        "xs": np.float32(0.1),
        "z": np.uint8(128),
        "ys": np.float32(0.5),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "xs", "z"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "ws"], ["wd"], axis=0),
        helper.make_node("DequantizeLinear", ["b", "bs"], ["bd"], axis=0),
        helper.make_node("Conv", ["xd", "wd", "bd"], ["c"]),
    ]
    outputs = []
    for number in range(readers):
        nodes.append(helper.make_node("QuantizeLinear", ["c", "ys", "z"], [f"q{number}"]))
        node = helper.make_node("DequantizeLinear", [f"q{number}", "ys", "z"], [f"y{number}"])
        nodes.append(node)
        outputs.append(helper.make_tensor_value_info(f"y{number}", TensorProto.FLOAT, [1, 4, 2, 2]))
    source = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 2, 2])
    stored = [numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items()]
    graph = helper.make_graph(nodes, "g", [source], outputs, stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def _operators(proto: onnx.ModelProto) -> set[str]:
    return {node.op_type for node in proto.graph.node}


def test_a_convolution_between_quantized_values_is_one_operator() -> None:
    assert _operators(with_integer_convolutions(_quantized_convolution())) == {
        "QuantizeLinear",
        "QLinearConv",
        "DequantizeLinear",
    }


@pytest.mark.parametrize("wrong", [{"bias_scale": 0.03}, {"readers": 2}])
def test_a_convolution_that_is_not_is_left_alone(wrong: dict[str, float]) -> None:
    """A bias in other units, or an output that is read twice: another function."""
    proto = _quantized_convolution(**wrong)  # type: ignore[arg-type]
    assert with_integer_convolutions(proto) == proto


def test_many_zeros_are_made_at_load(tmp_path: Path) -> None:
    """The zero points of a wide Linear layer: one zero in the file."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 100), nn.Linear(100, 10)).eval()
    fp32, int8 = tmp_path / "fp32.onnx", tmp_path / "int8.onnx"
    onnx_export.save(onnx_export.to_onnx(model, EXAMPLE), fp32)
    proto = quantizer.to_int8(fp32, lambda: [_images()])
    onnx_export.save(proto, int8)
    small = tmp_path / "small.onnx"
    lean.write(proto, small)
    stored = onnx.load(str(small)).graph.initializer
    zeros = [tuple(one.dims) for one in stored if one.data_type == TensorProto.INT8]
    assert (100,) not in zeros and (10,) in zeros
    images = _images(4, seed=2)
    np.testing.assert_array_equal(runtime.load(small).run(images), runtime.load(int8).run(images))
    operators = {node.op_type for node in runtime.fused_graph(small).graph.node}
    assert "QGemm" in operators and "Expand" not in operators


class Own(nn.Module):
    """A root that has a weight of its own, called as the runtime's tools call theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))
        self.last = nn.Conv2d(4, 5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.relu(nn.functional.conv2d(x, self.weight))
        x = nn.functional.interpolate(self.last(x), scale_factor=2.0)
        return x.mean((2, 3))


def test_names_do_not_collide_and_shapes_stay_known(tmp_path: Path) -> None:
    torch.manual_seed(0)
    fp32, small = tmp_path / "fp32.onnx", tmp_path / "small.onnx"
    onnx_export.save(onnx_export.to_onnx(Own().eval(), EXAMPLE), fp32)
    proto = quantizer.to_int8(fp32, lambda: [_images()], form="int4")
    onnx_export.save(proto, tmp_path / "long.onnx")
    lean.write(proto, small)
    images = _images(3)
    before, after = (runtime.load(path).run(images) for path in (tmp_path / "long.onnx", small))
    np.testing.assert_array_equal(after, before)
    assert onnx_macs.macs(small) == onnx_macs.macs(fp32) is not None


def test_a_file_with_branches_is_left_as_it_is() -> None:
    """Names inside a branch are those outside of it."""
    value = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    branches = {
        f"{way}_branch": helper.make_graph(
            [helper.make_node("Add", ["x", name], [f"{way}.y"])],
            way,
            [],
            [helper.make_tensor_value_info(f"{way}.y", TensorProto.FLOAT, [1])],
        )
        for way, name in (("then", "one"), ("else", "two"))
    }
    graph = helper.make_graph(
        [helper.make_node("If", ["c"], ["y"], **branches)],
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [1]),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
        ],
        [value],
        [
            numpy_helper.from_array(np.ones(1, np.float32), "one"),
            numpy_helper.from_array(np.full(1, 2, np.float32), "two"),
        ],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    assert lean.shipped(proto).proto == proto
