"""The profile of a file: memory, and the work of one sample."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgecompress.measure import processes
from edgecompress.measure.onnx_macs import macs
from edgecompress.measure.processes import Protocol
from tests.measure.models import matmuls


def test_peak_memory_excludes_the_parent_process(files: dict[str, Path], tmp_path: Path) -> None:
    """The parent of the measuring process once held more than the model needs."""
    ballast = np.ones(60_000_000)
    del ballast
    small = processes.profile(files["one"], Protocol(threads=1), [1])
    assert small["rss_before_load_bytes"] < small["peak_rss_bytes"] < 300_000_000
    large = processes.profile(matmuls(tmp_path / "large.onnx", 8, 2048), Protocol(threads=1), [1])
    assert large["peak_rss_bytes"] > large["rss_before_load_bytes"] + 100_000_000


@pytest.mark.parametrize("form", ["qoperator", "dynamic"])
def test_macs_of_other_quantized_formats_are_counted(
    form: str, files: dict[str, Path], tmp_path: Path
) -> None:
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        quantize_dynamic,
        quantize_static,
    )

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = [{"x": np.ones((1, 192), np.float32)}]

        def get_next(self) -> dict[str, np.ndarray] | None:
            return self.left.pop() if self.left else None

    path = tmp_path / "q.onnx"
    if form == "dynamic":
        quantize_dynamic(files["one"], path)
    else:
        quantize_static(files["one"], path, Reader(), quant_format=QuantFormat.QOperator)
    assert macs(path) == macs(files["one"]) == 4 * 192 * 192
