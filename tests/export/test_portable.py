"""Files for older runtimes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edgecompress.errors import UsageError
from edgecompress.export import onnx as onnx_export
from edgecompress.export import portable
from edgecompress.measure import runtime
from tests.export.models import EXAMPLE, SHAPE, SPEC, network


@pytest.mark.parametrize(
    ("version", "opset", "ir"),
    [("1.8", 14, 7), ("1.10.0", 15, 8), ("1.12", 17, 8), ("1.14", 18, 8), ("1.20", 18, 10)],
)
@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2", "student3"])
def test_an_older_runtime_gets_an_opset_that_it_supports(
    name: str, version: str, opset: int, ir: int, tmp_path: Path
) -> None:
    model = network(name)
    proto = portable.for_runtime(onnx_export.to_onnx(model, EXAMPLE, SPEC.metadata()), version)
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
