"""Files for older runtimes."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from edgecompress.data.preprocess import Preprocess
from edgecompress.errors import UsageError
from edgecompress.export import fp16, lean, portable
from edgecompress.export import onnx as onnx_export
from edgecompress.export import quantize as quantizer
from edgecompress.formats import ORDINARY
from edgecompress.measure import runtime
from tests.export.models import EXAMPLE, SHAPE, SPEC, network


@functools.cache
def exported(name: str) -> tuple[nn.Module, bytes]:
    """A network and its file for the newest runtime."""
    model = network(name)
    return model, onnx_export.to_onnx(model, EXAMPLE, SPEC.metadata()).SerializeToString()


@pytest.mark.parametrize(
    ("version", "opset", "ir"),
    [("1.8", 14, 7), ("1.10.0", 15, 8), ("1.12", 17, 8), ("1.14", 18, 8), ("1.20", 18, 8)],
)
@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2", "student3"])
def test_an_older_runtime_gets_an_opset_that_it_supports(
    name: str, version: str, opset: int, ir: int, tmp_path: Path
) -> None:
    model, newest = exported(name)
    proto = portable.for_runtime(onnx.load_from_string(newest), version)
    assert (proto.opset_import[0].version, proto.ir_version) == (opset, ir)
    onnx_export.save(proto, tmp_path / "old.onnx")
    images = torch.randn(7, *SHAPE)
    with torch.no_grad():
        expected = model(images).numpy()
    loaded = runtime.load(tmp_path / "old.onnx")
    np.testing.assert_allclose(
        loaded.run(images.numpy()), expected, atol=1e-5 * max(1.0, float(np.abs(expected).max()))
    )
    assert loaded.metadata.entries["classes"] == list(SPEC.classes)


def test_unknown_runtimes_are_refused() -> None:
    with pytest.raises(UsageError, match=r"1\.8"):
        portable.parse_runtime("1.2")
    with pytest.raises(UsageError, match="write it like"):
        portable.parse_runtime("new")


def circular() -> nn.Module:
    """A convolution whose padding comes from the other side."""
    conv = nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular")
    return nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)).eval()


def test_circular_padding_is_refused_where_the_runtime_has_none() -> None:
    proto = onnx_export.to_onnx(circular(), EXAMPLE)
    with pytest.raises(UsageError, match=r"1\.15 has no circular padding.*give --min-ort 1\.16"):
        portable.for_runtime(proto, "1.15")
    assert portable.for_runtime(proto, "1.16").ir_version == 8


class Mixed(nn.Module):
    """What has no fp16 kernel in an old runtime, or no int8 form that it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.cut, self.norm, self.out = nn.Conv2d(3, 16, 8, 8), nn.LayerNorm(16), nn.Linear(16, 5)
        self.over_all = nn.LayerNorm([16, 6, 6])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.interpolate(self.cut(x), size=(6, 6), mode="bicubic")
        x = nn.functional.celu(self.over_all(x)).flatten(2).transpose(1, 2)
        x = self.norm(x)
        x = nn.functional.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None])[:, 0]
        y: torch.Tensor = self.out(x.mean(1)).log_softmax(-1)
        return y


VALUES = np.random.default_rng(0).standard_normal((8, *SHAPE)).astype(np.float32)


def formats_of(model: nn.Module, folder: Path, runtime_version: str | None) -> dict[str, Path]:
    """The three formats of a network, for the oldest runtime of that version."""
    paths = {form: folder / f"{form}.onnx" for form in ORDINARY}
    proto = onnx_export.to_onnx(model, EXAMPLE)
    if runtime_version is not None:
        proto = portable.for_runtime(proto, runtime_version)
    onnx_export.save(proto, paths["fp32"])
    onnx_export.save(fp16.to_fp16(paths["fp32"]), paths["fp16"])
    int8 = quantizer.to_int8(paths["fp32"], lambda: quantizer.batches_of(VALUES))
    onnx_export.save(int8, paths["int8-qdq"])
    return paths


def test_every_format_has_the_lowest_ir_version_that_its_opset_allows(tmp_path: Path) -> None:
    for path in formats_of(Mixed().eval(), tmp_path, None).values():
        proto = onnx.load(str(path))
        assert (onnx_export.opset_of(proto), proto.ir_version) == (18, 8), path.name
        assert np.isfinite(runtime.load(path).run(VALUES)).all()


LOAD = """
import sys, numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
for path in sys.argv[2:]:
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (read,) = session.get_inputs()
    numpy.save(path + ".npy", session.run(None, {read.name: numpy.load(sys.argv[1])})[0])
print(onnxruntime.__version__)
"""


@pytest.fixture(scope="module")
def oldest_here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ONNX Runtime 1.15, the first that has files for Python 3.11."""
    folder = tmp_path_factory.mktemp("old")
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder)]
    done = subprocess.run([*install, "onnxruntime==1.15.1", "numpy<2"], capture_output=True)
    if done.returncode:
        pytest.skip("ONNX Runtime 1.15.1 cannot be installed for this Python")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2", "student3", "mixed"])
def test_every_file_is_loaded_by_the_oldest_runtime_that_it_names(
    name: str, tmp_path: Path, oldest_here: Path
) -> None:
    torch.manual_seed(0)
    model = Mixed().eval() if name == "mixed" else network(name)
    paths = formats_of(model, tmp_path, "1.15")
    np.save(tmp_path / "values.npy", VALUES)
    command = [sys.executable, "-c", LOAD, str(tmp_path / "values.npy"), *map(str, paths.values())]
    environment = {**os.environ, "PYTHONPATH": str(oldest_here)}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "1.15.1"
    for form, path in paths.items():
        expected = runtime.load(path).run(VALUES)
        error = np.abs(np.load(f"{path}.npy") - expected).max()
        assert error < (0.01 if form == "fp16" else 0.06) * np.abs(expected).max(), form


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2", "lenet5"])
def test_lean_files_of_few_bits_compute_the_same_in_the_oldest_runtime(
    name: str, tmp_path: Path, oldest_here: Path
) -> None:
    """As the same weights in int8, with long names and all nodes, to the last bit."""
    fp32 = tmp_path / "fp32.onnx"
    onnx_export.save(onnx_export.to_onnx(network(name), EXAMPLE), fp32)
    pairs = {}
    for form in ("int8-qdq", "int4", "int2"):
        proto = quantizer.to_int8(fp32, lambda: quantizer.batches_of(VALUES), form=form)
        pairs[form] = (tmp_path / f"{form}-long.onnx", tmp_path / f"{form}.onnx")
        onnx_export.save(proto, pairs[form][0])
        lean.write(proto, pairs[form][1])
    np.save(tmp_path / "values.npy", VALUES)
    files = [str(path) for pair in pairs.values() for path in pair]
    command = [sys.executable, "-c", LOAD, str(tmp_path / "values.npy"), *files]
    environment = {**os.environ, "PYTHONPATH": str(oldest_here)}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    for long, small in pairs.values():
        assert small.stat().st_size < long.stat().st_size
        np.testing.assert_array_equal(np.load(f"{small}.npy"), np.load(f"{long}.npy"))


@pytest.mark.slow
@pytest.mark.parametrize("form", ORDINARY)
def test_a_file_that_reads_images_is_loaded_by_the_oldest_runtime_too(
    form: str, tmp_path: Path, oldest_here: Path
) -> None:
    """With its preprocessing in the graph, for images of another size."""
    path = formats_of(network("resnet20"), tmp_path, "1.15")[form]
    preprocess = Preprocess((0.5,) * 3, (0.25,) * 3, resize=SHAPE[1], crop=SHAPE[1])
    file = tmp_path / "pixels.onnx"
    onnx_export.save(portable.embed_preprocess(onnx.load(str(path)), preprocess, SHAPE), file)
    images = np.random.default_rng(0).integers(0, 256, (3, 50, 41, SHAPE[0])).astype(np.uint8)
    np.save(tmp_path / "values.npy", images)
    command = [sys.executable, "-c", LOAD, str(tmp_path / "values.npy"), str(file)]
    environment = {**os.environ, "PYTHONPATH": str(oldest_here)}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "1.15.1"
    expected = runtime.load(file).run(images)
    error = np.abs(np.load(f"{file}.npy") - expected).max()
    assert error < 0.06 * np.abs(expected).max()
