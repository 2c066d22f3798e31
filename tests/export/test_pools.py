"""Adaptive pools become means, pools, copies and slices; never tables of indices."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgecompress.export import onnx as onnx_export
from edgecompress.measure import runtime


class Pooled(nn.Module):
    """A pool as a module, or as a function."""

    def __init__(self, wanted: tuple[int, int], functional: bool) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(wanted)
        self.wanted, self.functional = wanted, functional

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.adaptive_avg_pool2d(x, self.wanted) if self.functional else self.pool(x)
        return torch.flatten(pooled, 1)


@pytest.mark.parametrize("functional", [False, True])
@pytest.mark.parametrize(
    ("sizes", "wanted", "operators"),
    [
        ((1, 1), (7, 7), {"Expand"}),
        ((8, 8), (4, 2), {"AveragePool"}),
        ((8, 6), (1, 1), {"ReduceMean"}),
        ((2, 2), (4, 4), {"Slice", "Concat"}),
        ((4, 5), (7, 7), {"Slice", "ReduceMean", "Concat"}),
        ((6, 4), (4, 4), {"Slice", "ReduceMean", "Concat"}),
    ],
)
def test_an_adaptive_pool_is_what_it_computes(
    sizes: tuple[int, int],
    wanted: tuple[int, int],
    operators: set[str],
    functional: bool,
    tmp_path: Path,
) -> None:
    model = Pooled(wanted, functional).eval()
    proto = onnx_export.to_onnx(model, torch.zeros(1, 3, *sizes))
    assert {node.op_type for node in proto.graph.node} - {"Reshape"} == operators
    onnx_export.save(proto, tmp_path / "pool.onnx")
    x = torch.randn(3, 3, *sizes, generator=torch.Generator().manual_seed(0))
    outputs = torch.from_numpy(runtime.load(tmp_path / "pool.onnx").run(x.numpy()))
    torch.testing.assert_close(outputs, model(x), rtol=1e-5, atol=1e-6)
