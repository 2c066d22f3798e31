"""Models that the tests of this folder share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.measure.models import matmuls


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model, one with three times its work, one with another input, one whose outputs are NaN."""
    folder = tmp_path_factory.mktemp("onnx")
    return {
        "one": matmuls(folder / "one.onnx", 4),
        "three": matmuls(folder / "three.onnx", 12),
        "other": matmuls(folder / "other.onnx", 4, inputs=64),
        "nan": matmuls(folder / "nan.onnx", 4, poison=True),
    }
