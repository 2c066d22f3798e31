from __future__ import annotations

import torch
from torch import nn
from torch.onnx._internal.exporter import _registration

from edgecompress.export.onnx import to_onnx
from edgecompress.export.operations import operations_kept


def test_a_table_is_built_once_and_each_export_may_add_to_its_own() -> None:
    original = _registration.ONNXRegistry.__dict__["from_torchlib"]
    with operations_kept():
        first = _registration.ONNXRegistry.from_torchlib(18)
        first.register_op(torch.ops.aten.sinc.default, lambda x: x)
        first.functions.pop("aten::relu")
        second = _registration.ONNXRegistry.from_torchlib(18)
    assert "aten::relu" in second.functions
    assert not any(meta.is_custom for meta in second.functions.get("aten::sinc", []))
    shared = second.functions["aten::relu"][0]
    with operations_kept():
        assert _registration.ONNXRegistry.from_torchlib(18).functions["aten::relu"][0] is shared
    assert _registration.ONNXRegistry.__dict__["from_torchlib"] is original


def test_files_do_not_depend_on_exports_before_them() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    files = [to_onnx(network, torch.zeros(1, 3, 8, 8)).SerializeToString() for _ in range(2)]
    assert files[0] == files[1]
