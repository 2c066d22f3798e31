"""The fp16 format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from edgecompress.errors import EdgecompressError
from edgecompress.export import fp16
from edgecompress.export import onnx as onnx_export
from edgecompress.measure import runtime, trials
from tests.export.models import EXAMPLE

VALUES = np.random.default_rng(0).standard_normal((4, 3, 32, 32)).astype(np.float32)


class PreNorm(nn.Module):
    """A block of attention that normalises first."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.patches, self.out = nn.Conv2d(3, width, 8, 8), nn.Linear(width, 10)
        self.place = nn.Parameter(torch.randn(1, 16, width) * 0.02)
        self.block = nn.TransformerEncoderLayer(
            width, 4, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.patches(x).flatten(2).transpose(1, 2) + self.place
        z: torch.Tensor = self.out(self.block(y).mean(1))
        return z


def test_sums_over_many_values_stay_in_float32(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.LayerNorm(3072), nn.Linear(3072, 10), nn.Softmax(-1))
    onnx_export.save(onnx_export.to_onnx(model.eval(), EXAMPLE), tmp_path / "m.onnx")
    proto = fp16.to_fp16(tmp_path / "m.onnx")
    onnx_export.save(proto, tmp_path / "half.onnx")
    kinds = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    assert kinds["1.weight"] == onnx.TensorProto.FLOAT
    assert onnx.TensorProto.FLOAT16 in kinds.values()
    loaded = (runtime.load(tmp_path / name) for name in ("m.onnx", "half.onnx"))
    expected, actual = (one.run(100 * VALUES) for one in loaded)
    np.testing.assert_allclose(actual, expected, atol=2e-3)


def test_pre_norm_attention_does_not_end_the_process(tmp_path: Path) -> None:
    """ONNX Runtime 1.31 crashes on its fp16 form, which the process that made it survives."""
    onnx_export.save(onnx_export.to_onnx(PreNorm().eval(), EXAMPLE), tmp_path / "m.onnx")
    onnx_export.save(fp16.to_fp16(tmp_path / "m.onnx"), tmp_path / "half.onnx")
    try:
        trials.try_out(tmp_path / "half.onnx")
    except EdgecompressError as error:
        assert "crashes on 'half.onnx'" in str(error)
    else:
        assert np.isfinite(runtime.load(tmp_path / "half.onnx").run(VALUES)).all()
