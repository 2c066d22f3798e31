"""ONNX files in ONNX Runtime: providers and sizes."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort
import pytest

from edgecompress.errors import EnvironmentMissingError
from edgecompress.measure import runtime


def test_a_provider_that_falls_back_to_the_cpu_is_refused(files: dict[str, Path]) -> None:
    """Stock ONNX Runtime offers Azure's provider, which runs nothing of a plain file."""
    if "AzureExecutionProvider" not in ort.get_available_providers():
        pytest.skip("this ONNX Runtime has no AzureExecutionProvider")
    with pytest.raises(EnvironmentMissingError, match="would fall back to the CPU"):
        runtime.load(files["one"], provider="AzureExecutionProvider")
