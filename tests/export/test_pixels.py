"""Preprocessing inside the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecompress.data import Preprocess
from edgecompress.errors import EdgecompressError
from edgecompress.export import fp16, portable
from edgecompress.export import onnx as onnx_export
from edgecompress.export import pixels as pixels_export
from edgecompress.export import quantize as quantizer
from edgecompress.measure import runtime
from tests.export.models import EXAMPLE, SHAPE, SPEC, network


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pixels") / "m.onnx"
    onnx_export.save(onnx_export.to_onnx(network("resnet20"), EXAMPLE, SPEC.metadata()), path)
    return path


@settings(max_examples=25, deadline=None)
@given(
    st.integers(20, 90), st.integers(20, 90), st.sampled_from([None, 36, 48]), st.integers(0, 99)
)
def test_decoded_images_are_preprocessed_in_the_graph(
    plain: Path, height: int, width: int, resize: int | None, seed: int
) -> None:
    """The graph resizes, crops and normalises exactly as the training does, for images of any
    size.
    """
    preprocess = Preprocess((0.5, 0.4, 0.3), (0.2, 0.3, 0.25), resize or 32, 32)
    path = plain.parent / "embedded.onnx"
    onnx_export.save(pixels_export.embed_preprocess(onnx.load(str(plain)), preprocess, SHAPE), path)
    pixels = np.random.default_rng(seed).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    expected = runtime.load(plain, threads=1).run(
        preprocess(torch.from_numpy(pixels).permute(0, 3, 1, 2)).numpy()
    )
    embedded = runtime.load(path, threads=1)
    assert embedded.reads_pixels
    np.testing.assert_allclose(
        embedded.run(pixels), expected, atol=2e-3 * max(1.0, float(np.abs(expected).max()))
    )
    assert embedded.metadata.entries["classes"] == list(SPEC.classes)


@pytest.mark.parametrize("form", ["int8-qdq", "fp16"])
def test_quantized_formats_read_images_too(form: str, plain: Path, tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((16, *SHAPE)).astype(np.float32)
    quantized = (
        fp16.to_fp16(plain)
        if form == "fp16"
        else quantizer.to_int8(plain, lambda: quantizer.batches_of(values))
    )
    onnx_export.save(quantized, tmp_path / "small.onnx")
    embedded = pixels_export.embed_preprocess(quantized, SPEC.preprocess, SHAPE)
    onnx_export.save(embedded, tmp_path / "embedded.onnx")
    pixels = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    expected = runtime.load(tmp_path / "small.onnx").run(
        SPEC.preprocess(torch.from_numpy(pixels).permute(0, 3, 1, 2)).numpy()
    )
    np.testing.assert_allclose(
        runtime.load(tmp_path / "embedded.onnx").run(pixels), expected, atol=1e-4
    )


def test_an_old_opset_is_refused(plain: Path) -> None:
    old = portable.for_runtime(onnx.load(str(plain)), "1.12")
    with pytest.raises(EdgecompressError, match="opset 18"):
        pixels_export.embed_preprocess(old, SPEC.preprocess, SHAPE)
