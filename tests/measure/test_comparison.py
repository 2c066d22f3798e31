"""Two files measured together."""

from __future__ import annotations

from pathlib import Path

from edgecompress.measure.comparison import compare
from edgecompress.measure.processes import Protocol


def test_looks_at_or_below_the_first_processes_are_skipped(files: dict[str, Path]) -> None:
    protocol = Protocol(threads=1, processes=3, looks=(2, 3), blocks=5, block_ms=0.5)
    result = compare(files["three"], files["three"], 0.0, protocol)
    assert result["processes"] == 3
