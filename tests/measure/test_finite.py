"""Where NaN begins."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgecompress.measure.finite import first_not_finite
from tests.measure.models import matmuls


def test_the_layer_is_named_and_finite_networks_have_none(tmp_path: Path) -> None:
    feeds = {"x": np.ones((1, 192), np.float32)}
    assert first_not_finite(matmuls(tmp_path / "good.onnx", 3), feeds) is None
    bad = matmuls(tmp_path / "bad.onnx", 3, poison=True)
    assert first_not_finite(bad, feeds) == "layer 'h0' (MatMul)"


def test_a_file_that_cannot_run_has_none(tmp_path: Path) -> None:
    path = matmuls(tmp_path / "good.onnx", 1)
    assert first_not_finite(path, {"x": np.ones((1, 3), np.float32)}) is None
