"""Preprocessing inside the file, and files for older runtimes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecompress.data import Preprocess
from edgecompress.errors import EdgecompressError, UsageError
from edgecompress.export import onnx as onnx_export
from edgecompress.export import portable
from edgecompress.export import quantize as quantizer
from edgecompress.measure import runtime
from tests.export.test_export import EXAMPLE, SHAPE, SPEC, network


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("portable") / "m.onnx"
    onnx_export.save(onnx_export.to_onnx(network("resnet20"), EXAMPLE, SPEC.metadata()), path)
    return path


@settings(max_examples=25, deadline=None)
@given(
    st.integers(20, 90), st.integers(20, 90), st.sampled_from([None, 36, 48]), st.integers(0, 99)
)
def test_an_image_goes_in_as_it_was_decoded(
    plain: Path, height: int, width: int, resize: int | None, seed: int
) -> None:
    """The graph resizes, cuts and normalises exactly as the training did, whatever the size of the
    image.
    """
    preprocess = Preprocess((0.5, 0.4, 0.3), (0.2, 0.3, 0.25), resize or 32, 32)
    path = plain.parent / "embedded.onnx"
    onnx_export.save(portable.embed_preprocess(onnx.load(str(plain)), preprocess, SHAPE), path)
    pixels = np.random.default_rng(seed).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    wanted = runtime.load(plain, threads=1).run(
        preprocess(torch.from_numpy(pixels).permute(0, 3, 1, 2)).numpy()
    )
    found = runtime.load(path, threads=1)
    assert found.reads_pixels
    np.testing.assert_allclose(
        found.run(pixels), wanted, atol=2e-3 * max(1.0, float(np.abs(wanted).max()))
    )
    assert found.metadata["classes"] == list(SPEC.classes)


@pytest.mark.parametrize("form", ["int8-qdq", "fp16"])
def test_small_formats_take_images_too(form: str, plain: Path, tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((16, *SHAPE)).astype(np.float32)
    made = (
        quantizer.to_fp16(plain)
        if form == "fp16"
        else quantizer.to_int8(plain, lambda: quantizer.batches_of(values))
    )
    onnx_export.save(made, tmp_path / "small.onnx")
    embedded = portable.embed_preprocess(made, SPEC.preprocess, SHAPE)
    onnx_export.save(embedded, tmp_path / "embedded.onnx")
    pixels = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    wanted = runtime.load(tmp_path / "small.onnx").run(
        SPEC.preprocess(torch.from_numpy(pixels).permute(0, 3, 1, 2)).numpy()
    )
    np.testing.assert_allclose(
        runtime.load(tmp_path / "embedded.onnx").run(pixels), wanted, atol=1e-4
    )


@pytest.mark.parametrize(
    ("version", "opset", "ir"),
    [("1.8", 14, 7), ("1.10.0", 15, 8), ("1.12", 17, 8), ("1.14", 18, 8), ("1.20", 18, 10)],
)
@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2", "student3"])
def test_an_older_runtime_gets_an_opset_that_it_knows(
    name: str, version: str, opset: int, ir: int, tmp_path: Path
) -> None:
    model = network(name)
    proto = portable.for_runtime(onnx_export.to_onnx(model, EXAMPLE, SPEC.metadata()), version)
    assert (proto.opset_import[0].version, proto.ir_version) == (opset, ir)
    onnx_export.save(proto, tmp_path / "old.onnx")
    images = torch.randn(7, *SHAPE)
    with torch.no_grad():
        wanted = model(images).numpy()
    loaded = runtime.load(tmp_path / "old.onnx")
    np.testing.assert_allclose(
        loaded.run(images.numpy()), wanted, atol=1e-5 * max(1.0, float(np.abs(wanted).max()))
    )
    assert loaded.metadata["classes"] == list(SPEC.classes)


def test_what_cannot_be(plain: Path) -> None:
    with pytest.raises(UsageError, match=r"1\.8"):
        portable.parse_runtime("1.2")
    with pytest.raises(UsageError, match="write it like"):
        portable.parse_runtime("new")
    old = portable.for_runtime(onnx.load(str(plain)), "1.12")
    with pytest.raises(EdgecompressError, match="opset 18"):
        portable.embed_preprocess(old, SPEC.preprocess, SHAPE)
