"""Int8 files: calibration in bounded memory, layers in float, given scales, and the known traps of
ONNX Runtime's own tools.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from torch import nn

from edgecompress.errors import UsageError
from edgecompress.export import calibration, in_float
from edgecompress.export import onnx as onnx_export
from edgecompress.export import quantize as quantizer
from edgecompress.export.calibration import Calibrated
from edgecompress.measure import machine, runtime
from edgecompress.measure.runtime import Array
from tests.export.models import EXAMPLE, SHAPE, SPEC, network

VALUES = np.random.default_rng(0).standard_normal((32, *SHAPE)).astype(np.float32)


@pytest.fixture(scope="module")
def fp32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("quantize") / "m.onnx"
    onnx_export.save(onnx_export.to_onnx(network("resnet20"), EXAMPLE, SPEC.metadata()), path)
    return path


@pytest.fixture(scope="module")
def calibrated(fp32: Path) -> Calibrated:
    return calibration.calibrate(fp32, quantizer.batches_of(VALUES, 8))


def outputs(proto: onnx.ModelProto, folder: Path) -> np.ndarray:
    onnx_export.save(proto, folder / "trial.onnx")
    return runtime.load(folder / "trial.onnx").run(VALUES)


MEMORY = """
import resource, sys, numpy as np
from pathlib import Path
from edgecompress.export import quantize
def batches(count):
    generator = np.random.default_rng(0)
    for _ in range(count // 10):
        yield generator.standard_normal((10, 3, 32, 32)).astype(np.float32)
for method in sys.argv[3:]:
    quantize.calibrate(Path(sys.argv[1]), batches(int(sys.argv[2])), method)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_calibration_holds_one_batch_at_a_time(fp32: Path) -> None:
    """Peak memory of 500 images is at most 1.2 times that of 50, over all methods."""

    def peak(count: int) -> int:
        methods = ("minmax", "entropy", "percentile")
        command = [sys.executable, "-c", MEMORY, str(fp32), str(count), *methods]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return int(done.stdout.split()[-1])

    assert peak(500) <= 1.2 * peak(50)


def test_batches_do_not_change_the_ranges(fp32: Path) -> None:
    full, parts = (
        calibration.calibrate(fp32, quantizer.batches_of(VALUES, size)) for size in (32, 5)
    )
    for name in full.ranges.keys():  # noqa: SIM118 (not a dict)
        for one, other in zip(
            full.ranges[name].range_value, parts.ranges[name].range_value, strict=True
        ):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["minmax", "entropy", "percentile"])
def test_every_method_of_calibration(method: str, fp32: Path, tmp_path: Path) -> None:
    reference = runtime.load(fp32).run(VALUES)
    quantized = outputs(
        quantizer.quantized(calibration.calibrate(fp32, quantizer.batches_of(VALUES), method)),
        tmp_path,
    )
    assert np.abs(quantized - reference).max() < 0.1 * np.abs(reference).max()


def left_in_float(proto: onnx.ModelProto, folder: Path) -> list[str]:
    onnx_export.save(proto, folder / "trial.onnx")
    return in_float.float_layers(folder / "trial.onnx")


def test_layers_left_in_float_are_those_requested(calibrated: Calibrated, tmp_path: Path) -> None:
    names = list(calibrated.layers())
    assert names[:2] == ["conv1", "layers.0.conv1"], "layers have the names of the network"
    assert left_in_float(quantizer.quantized(calibrated), tmp_path) == []
    assert left_in_float(quantizer.quantized(calibrated, exclude=[names[3]]), tmp_path) == [
        names[3]
    ]
    alone = left_in_float(quantizer.quantized(calibrated, only=[names[2]]), tmp_path)
    assert sorted(alone) == sorted(set(names) - {names[2]})
    with pytest.raises(UsageError, match="no layer 'nothing'"):
        quantizer.quantized(calibrated, exclude=["nothing"])


def test_tensors_left_in_float_are_named(calibrated: Calibrated) -> None:
    assert in_float.float_tensors(quantizer.quantized(calibrated)) == {}
    largest = max(
        calibrated.layers(),
        key=lambda name: next(
            int(np.prod(t.dims))
            for t in calibrated.prepared.graph.initializer
            if t.name == f"{name}.weight"
        ),
    )
    stayed = in_float.float_tensors(quantizer.quantized(calibrated, exclude=[largest]))
    assert list(stayed) == [f"{largest}.weight"]
    assert next(iter(stayed.values())) > 1000


def test_given_scales_are_those_of_the_file(calibrated: Calibrated) -> None:
    name = list(calibrated.layers())[2]
    proto = quantizer.quantized(calibrated, scales={name: (0.03125, 7)})
    values = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    node = next(
        n
        for n in proto.graph.node
        if calibration.layer_of(n) == name or n.name in calibrated.layers()[name]
    )
    dequantize = next(n for n in proto.graph.node if node.input[0] in n.output)
    assert (float(values[dequantize.input[1]]), int(values[dequantize.input[2]])) == (0.03125, 7)


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self) -> None:
        self.batches = iter([{"input": VALUES}])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.batches, None)


def naive(source: Path, target: Path, **options: object) -> onnx.ModelProto:
    """ONNX Runtime's tool, called as in its shortest example."""
    quantize_static(str(source), str(target), _Reader(), quant_format=QuantFormat.QDQ, **options)
    return onnx.load(str(target))


def fused_kinds(path: Path, folder: Path) -> list[str]:
    """The operations that ONNX Runtime really runs."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(str(folder / "optimized.onnx")).graph.node]


def test_trap_signed_activations_leave_convolutions_in_float(
    fp32: Path, calibrated: Calibrated, tmp_path: Path
) -> None:
    """S8S8, or a graph without preparation, may look quantized and run in float; ours runs every
    convolution in int8.
    """
    onnx_export.save(quantizer.quantized(calibrated), tmp_path / "ours.onnx")
    ours = fused_kinds(tmp_path / "ours.onnx", tmp_path)
    assert "Conv" not in ours
    assert "FusedConv" not in ours
    assert sum(kind == "QLinearConv" for kind in ours) == sum(
        n.op_type == "Conv" for n in calibrated.prepared.graph.node
    )
    naive(
        fp32, tmp_path / "signed.onnx", activation_type=QuantType.QInt8, weight_type=QuantType.QInt8
    )
    signed = fused_kinds(tmp_path / "signed.onnx", tmp_path)
    assert sum(kind == "QLinearConv" for kind in ours) >= sum(
        kind == "QLinearConv" for kind in signed
    )


def test_trap_no_int8_kernel(tmp_path: Path) -> None:
    """The file quantizes a transposed convolution, which ONNX Runtime runs in float: the layer is
    reported.
    """
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 8, 2, 2),
        nn.ReLU(),
        nn.Conv2d(8, 4, 3),
    ).eval()
    onnx_export.save(onnx_export.to_onnx(model, EXAMPLE), tmp_path / "decoder.onnx")
    proto = quantizer.to_int8(tmp_path / "decoder.onnx", lambda: quantizer.batches_of(VALUES))
    node = next(node for node in proto.graph.node if node.op_type == "ConvTranspose")
    assert all(
        producer.op_type == "DequantizeLinear"
        for name in node.input[:2]
        for producer in proto.graph.node
        if name in producer.output
    )
    assert left_in_float(proto, tmp_path) == ["2"]


class Shared(nn.Module):
    """A convolution that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice = nn.Conv2d(3, 8, 3, 2), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.twice(self.twice(self.first(x).relu()).relu())
        return y.mean((2, 3))


class Attention(nn.Module):
    """A product of two activations."""

    def __init__(self) -> None:
        super().__init__()
        self.cut, self.last = nn.Conv2d(3, 8, 8, 8), nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.cut(x).flatten(2)
        y = (y @ y.transpose(1, 2)).softmax(-1) @ y
        z: torch.Tensor = self.last(y.mean(2))
        return z


@pytest.mark.parametrize("kind", [Shared, Attention])
def test_every_layer_can_be_left_in_float(kind: type[nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    onnx_export.save(onnx_export.to_onnx(kind().eval(), EXAMPLE), tmp_path / "f.onnx")
    model = calibration.calibrate(tmp_path / "f.onnx", quantizer.batches_of(VALUES))
    names = list(model.layers())
    assert left_in_float(quantizer.quantized(model), tmp_path) == []
    for name in names:
        assert left_in_float(quantizer.quantized(model, exclude=[name]), tmp_path) == [name]
        assert set(left_in_float(quantizer.quantized(model, only=[name]), tmp_path)) == {*names} - {
            name
        }
    assert set(left_in_float(quantizer.quantized(model, exclude=names), tmp_path)) == {*names}


def test_trap_one_scale_per_tensor(calibrated: Calibrated, fp32: Path, tmp_path: Path) -> None:
    """One scale per tensor loses channels of very different magnitude; per-channel scales keep
    them.
    """
    proto = onnx.load(str(fp32))
    weight = next(t for t in proto.graph.initializer if t.name == "layers.4.conv1.weight")
    values = onnx.numpy_helper.to_array(weight).copy()
    values[0] *= 300
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    following = next(t for t in proto.graph.initializer if t.name == "layers.4.conv2.weight")
    values = onnx.numpy_helper.to_array(following).copy()
    values[:, 0] /= 300
    following.CopyFrom(onnx.numpy_helper.from_array(values, following.name))
    onnx_export.save(proto, tmp_path / "uneven.onnx")
    int8 = quantizer.to_int8(tmp_path / "uneven.onnx", lambda: quantizer.batches_of(VALUES))
    shapes = {t.name: list(t.dims) for t in int8.graph.initializer}
    scales = [
        name for name in shapes if name.startswith("layers.4.conv1.weight") and "scale" in name
    ]
    assert shapes[scales[0]] == [values.shape[1]], "one scale per output channel"


def test_trap_saturation_without_an_int8_dot_product(calibrated: Calibrated) -> None:
    """Two 8-bit products added in 16 bits saturate on old processors: there weights have 7 bits."""

    def largest(reduce_range: bool) -> int:
        proto = quantizer.quantized(calibrated, reduce_range=reduce_range)
        int8 = [
            onnx.numpy_helper.to_array(t)
            for t in proto.graph.initializer
            if t.data_type == onnx.TensorProto.INT8
        ]
        return max(int(np.abs(value.astype(int)).max()) for value in int8 if value.ndim > 1)

    assert largest(True) <= 64
    assert largest(False) == 127


def saturating(left: Array, right: Array) -> Array:
    """The products (M, N) of uint8 (M, K) and int8 (K, N) as x86 computes them without an int8 dot
    product: vpmaddubsw adds two neighbouring products with saturation in 16 bits, then these sums
    are added in 32 bits.
    """
    products = left.astype(np.int64)[:, :, None] * right.astype(np.int64)[None]  # (M, K, N)
    pairs = products[:, ::2] + products[:, 1::2]
    return np.asarray(pairs.clip(-(2**15), 2**15 - 1).sum(1))


@pytest.mark.parametrize("seed", range(5))
def test_7_bits_never_saturate_and_8_do(seed: int) -> None:
    generator = np.random.default_rng(seed)
    left = generator.integers(0, 256, (6, 64), dtype=np.uint8)
    left[:, :8] = 255
    for most, exact in ((64, True), (127, False)):
        right = generator.integers(-most, most + 1, (64, 9)).astype(np.int8)
        right[:8] = most
        expected = left.astype(np.int64) @ right.astype(np.int64)
        assert np.array_equal(saturating(left, right), expected) == exact


def test_the_file_says_how_many_bits_its_weights_have(
    calibrated: Calibrated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for reduced, bits in ((True, 7), (False, 8)):
        path = tmp_path / f"{bits}.onnx"
        onnx_export.save(quantizer.quantized(calibrated, reduce_range=reduced), path)
        loaded = runtime.load(path)
        assert loaded.metadata.integer("weight_bits") == bits
        for dot in (True, False):
            monkeypatch.setattr(machine, "has_int8_dot", lambda dot=dot: dot)
            assert (loaded.warning() is not None) == (bits == 8 and not dot)
        monkeypatch.undo()


def test_metadata_are_kept(calibrated: Calibrated) -> None:
    kept = {p.key: json.loads(p.value) for p in quantizer.quantized(calibrated).metadata_props}
    assert kept["edgecompress.classes"] == list(SPEC.classes)


def test_calibration_needs_an_image(fp32: Path) -> None:
    with pytest.raises(UsageError, match="no calibration image"):
        calibration.calibrate(fp32, [])


class Scaled(nn.Module):
    """`addmm` with factors, of a weight that is read twice."""

    def __init__(self, alpha: float, beta: float) -> None:
        super().__init__()
        self.first, self.factors = nn.Linear(32, 16), (alpha, beta)
        self.weight, self.bias = nn.Parameter(torch.randn(16, 16)), nn.Parameter(torch.randn(16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        alpha, beta = self.factors
        y = self.first(x.mean((1, 2)))
        y = torch.addmm(self.bias, y, self.weight, alpha=alpha, beta=beta).relu()
        z: torch.Tensor = torch.addmm(self.bias, y, self.weight)
        return z


@pytest.mark.parametrize(("alpha", "beta"), [(0.5, 1.0), (1.0, 2.0), (3.0, 0.25), (1.0, 0.0)])
def test_factors_of_a_gemm_are_part_of_its_int8_form(
    alpha: float, beta: float, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    onnx_export.save(onnx_export.to_onnx(Scaled(alpha, beta).eval(), EXAMPLE), tmp_path / "m.onnx")
    proto = quantizer.to_int8(tmp_path / "m.onnx", lambda: quantizer.batches_of(VALUES))
    expected = runtime.load(tmp_path / "m.onnx").run(VALUES)
    error = np.abs(outputs(proto, tmp_path) - expected).max()
    assert error < 0.04 * np.abs(expected).max()
    assert left_in_float(proto, tmp_path) == []


def test_a_grouped_transposed_convolution_is_quantized(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.ConvTranspose2d(16, 8, 2, 2, groups=4)
    ).eval()
    onnx_export.save(onnx_export.to_onnx(model, EXAMPLE), tmp_path / "m.onnx")
    proto = quantizer.to_int8(tmp_path / "m.onnx", lambda: quantizer.batches_of(VALUES))
    expected = runtime.load(tmp_path / "m.onnx").run(VALUES)
    assert np.abs(outputs(proto, tmp_path) - expected).max() < 0.05 * np.abs(expected).max()
    weight = next(t for t in proto.graph.initializer if t.name.startswith("2.weight_quant"))
    assert weight.data_type == onnx.TensorProto.INT8
