"""Preprocessing inside the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

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


class Pixels(nn.Module):
    """The image that it reads, as outputs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)


def test_resized_pixels_are_within_1_of_pillows(tmp_path: Path) -> None:
    """At the border too: 40 random sizes up and down (200 sizes gave the same bound)."""
    side = 48
    identity = Preprocess((0.0,) * 3, (1.0,) * 3, side, side, scale=1)
    proto = onnx_export.to_onnx(Pixels().eval(), torch.zeros(1, 3, side, side))
    path = tmp_path / "pixels.onnx"
    onnx_export.save(pixels_export.embed_preprocess(proto, identity, (3, side, side)), path)
    loaded, generator = runtime.load(path, threads=1), np.random.default_rng(0)
    for _ in range(40):
        height, width = (int(size) for size in generator.integers(8, 300, 2))
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        scale = side / min(height, width)
        size = [max(side, round(length * scale)) for length in (height, width)]
        resized = Image.fromarray(pixels).resize((size[1], size[0]), Image.Resampling.BILINEAR)
        top, left = (max(0, (length - side) // 2) for length in size)
        expected = np.asarray(resized)[top : top + side, left : left + side].astype(int)
        actual = loaded.run(pixels[None])[0].reshape(3, side, side).transpose(1, 2, 0)
        assert np.abs(actual - expected).max() <= 1, (height, width)
        trained_on = identity(torch.from_numpy(pixels).permute(2, 0, 1)[None])[0].numpy()
        off = np.abs(actual.transpose(2, 0, 1) - trained_on)
        assert off.max() <= 1 and (off > 0).mean() < 0.001, (height, width)
