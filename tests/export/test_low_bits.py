"""Weights of 4 and 2 bits in the file: every kind of layer, and the vectors beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from edgecompress.core import grid
from edgecompress.export import calibration, lean
from edgecompress.export import onnx as onnx_export
from edgecompress.export import quantize as quantizer
from edgecompress.export.low_bits import on_low_bits
from edgecompress.export.narrow import narrowed
from edgecompress.measure import runtime


class Every(nn.Module):
    """Convolutions of all kinds, transposed ones, a Linear layer, and a product."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.down = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(12, 8, 2, stride=2)
        self.grouped_up = nn.ConvTranspose2d(8, 8, 2, stride=2, groups=2)
        self.last = nn.Linear(8, 12)
        self.weight = nn.Parameter(torch.randn(12, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.depthwise(torch.relu(self.first(x))))
        x = torch.relu(self.up(torch.relu(self.down(x))))
        x = torch.relu(self.grouped_up(x)).mean((2, 3))
        product: Tensor = torch.relu(self.last(x)) @ self.weight
        return product


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> calibration.Calibrated:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("low") / "fp32.onnx"
    onnx_export.save(onnx_export.to_onnx(Every().eval(), torch.zeros(1, 3, 8, 8)), path)
    images = np.random.default_rng(0).standard_normal((16, 3, 8, 8)).astype(np.float32)
    return calibration.calibrate(path, [images])


@pytest.mark.parametrize("bits", grid.LOW_BITS)
def test_every_kind_of_layer_has_weights_on_the_grid(
    bits: int, calibrated: calibration.Calibrated, tmp_path: Path
) -> None:
    layers = calibrated.layers()
    assert len(layers) == 7
    proto = quantizer.quantized(calibrated, bits=dict.fromkeys(layers, bits))
    values = {-3, -1, 1, 3} if bits == 2 else set(range(-7, 8))
    stored = [
        numpy_helper.to_array(tensor)
        for tensor in proto.graph.initializer
        if tensor.data_type == TensorProto.INT8 and len(tensor.dims) > 1
    ]
    assert len(stored) == 7
    for weight in stored:
        assert set(np.unique(weight)) <= values
    plain, small = tmp_path / "plain.onnx", tmp_path / "small.onnx"
    onnx_export.save(proto, plain)
    lean.write(proto, small)
    images = np.random.default_rng(1).standard_normal((4, 3, 8, 8)).astype(np.float32)
    np.testing.assert_array_equal(runtime.load(small).run(images), runtime.load(plain).run(images))


def test_only_the_named_layers_change(calibrated: calibration.Calibrated) -> None:
    changed, overrides = on_low_bits(calibrated, {"down": 2})
    before = {t.name: t for t in calibrated.prepared.graph.initializer}
    different = [t.name for t in changed.prepared.graph.initializer if t != before[t.name]]
    assert different == ["down.weight"] == [*overrides]
    assert len(overrides["down.weight"]) == 12
    scales = [float(one["scale"]) for one in overrides["down.weight"]]
    assert scales == [float(np.float16(scale)) for scale in scales], "two bytes each"


def _sum_of(vectors: dict[str, runtime.Array]) -> onnx.ModelProto:
    """x and the sum of what is dequantized with each float vector as its scale, or is an int32
    vector with the scale 1.
    """
    size = len(next(iter(vectors.values())))
    ones = {"ones": np.ones(size, np.int8), "unit": np.ones((), np.float32)}
    nodes, value = [], "x"
    for name, vector in vectors.items():
        read = ["ones", name] if vector.dtype == np.float32 else [name, "unit"]
        nodes.append(helper.make_node("DequantizeLinear", read, [f"{name}.float"], axis=0))
        nodes.append(helper.make_node("Add", [value, f"{name}.float"], [f"after.{name}"]))
        value = f"after.{name}"
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [size])],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, [size])],
        [numpy_helper.from_array(v, name) for name, v in {**vectors, **ones}.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def test_vectors_are_narrow_where_nothing_is_lost(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    halves = generator.standard_normal((5, 40)).astype(np.float16).astype(np.float32)
    small = generator.integers(-30_000, 30_000, (5, 40)).astype(np.int32)
    vectors = {
        **{f"scale{n}": value for n, value in enumerate(halves)},
        **{f"bias{n}": value for n, value in enumerate(small)},
        "exact": generator.standard_normal(40).astype(np.float32),
        "large": np.full(40, 40_000, np.int32),
    }
    proto = _sum_of(vectors)
    made = narrowed(proto)
    kept = {tensor.name for tensor in made.graph.initializer}
    assert {"exact", "large"} <= kept
    assert not kept & {"scale0", "bias0"}
    paths = [tmp_path / "before.onnx", tmp_path / "after.onnx"]
    for model, path in zip((proto, made), paths, strict=True):
        onnx_export.save(model, path)
    assert paths[1].stat().st_size < paths[0].stat().st_size
    x = {"x": generator.standard_normal(40).astype(np.float32)}
    before, after = (runtime.load(path).execute(x)[0] for path in paths)
    np.testing.assert_array_equal(after, before)


def test_few_vectors_stay_as_they_are() -> None:
    proto = _sum_of({"a": np.ones(9, np.float32), "b": np.ones(9, np.int32)})
    assert narrowed(proto) == proto
