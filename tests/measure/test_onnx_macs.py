"""MACs of files: those of the network that they were exported from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from edgecompress.core.macs import macs_by_module
from edgecompress.export import onnx as onnx_export
from edgecompress.export import quantize as quantizer
from edgecompress.export.pixels import embed_preprocess
from edgecompress.measure.onnx_macs import macs
from tests.core.test_macs import EXAMPLE, NETWORKS, Attention, Recurrent
from tests.export.models import SPEC


class Einsum(nn.Module):
    """A product of two activations."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("bchw,bdhw->bcd", x, x).flatten(1)


FILES = {
    **NETWORKS,
    "lstm": Recurrent(nn.LSTM(16, 12, batch_first=True, bidirectional=True)),
    "attention": Attention(fused=False),
    "einsum": Einsum(),
}


@pytest.mark.parametrize("name", FILES)
def test_the_macs_of_a_file_are_those_of_its_network(name: str, tmp_path: Path) -> None:
    model, path = FILES[name].eval(), tmp_path / "m.onnx"
    onnx_export.save(onnx_export.to_onnx(model, EXAMPLE), path)
    assert macs(path) == sum(macs_by_module(model, EXAMPLE).values())


@pytest.mark.parametrize("name", ["twice", "transposed", "attention"])
def test_int8_and_pixels_change_no_macs(name: str, tmp_path: Path) -> None:
    model, path = FILES[name].eval(), tmp_path / "m.onnx"
    proto = onnx_export.to_onnx(model, EXAMPLE)
    onnx_export.save(proto, path)
    expected = macs(path)
    values = torch.randn(4, 3, 32, 32).numpy()
    int8 = quantizer.to_int8(path, lambda: quantizer.batches_of(values))
    onnx_export.save(int8, tmp_path / "int8.onnx")
    assert macs(tmp_path / "int8.onnx") == expected
    embedded = embed_preprocess(proto, SPEC.preprocess, SPEC.image_shape)
    onnx_export.save(embedded, tmp_path / "pixels.onnx")
    assert macs(tmp_path / "pixels.onnx") in (expected, None)  # None: of sizes that it cannot know
