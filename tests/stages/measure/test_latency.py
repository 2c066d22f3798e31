"""Two files timed side by side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgecompress.measure import runtime
from edgecompress.stages.measure.latency import side_by_side
from tests.measure.models import fixed_batch, matmuls


def test_the_ratio_is_that_of_interleaved_blocks_with_its_interval(tmp_path: Path) -> None:
    paths = [matmuls(tmp_path / "slow.onnx", 24), matmuls(tmp_path / "fast.onnx", 8)]
    loaded = [runtime.load(path, threads=1) for path in paths]
    found = side_by_side(paths, loaded, samples=60, threads=1)
    low, high = found.ratio["ci95"]
    assert low <= found.ratio["median"] <= high < 0.8
    assert found.ratio["median"] == pytest.approx(1 / 3, abs=0.2)
    assert found.percentiles[1]["p50"] < found.percentiles[0]["p50"]
    assert found.load["other_cores"] >= 0


def test_files_of_other_inputs_are_timed_apart(tmp_path: Path) -> None:
    paths = [matmuls(tmp_path / "a.onnx", 8), fixed_batch(tmp_path / "b.onnx", "n")]
    loaded = [runtime.load(path, threads=1) for path in paths]
    found = side_by_side(paths, loaded, samples=60, threads=1)
    assert 0 < found.ratio["median"] < 1


def test_one_process_has_no_interval_and_is_still_a_result(tmp_path: Path) -> None:
    """The time ends after the first process: an infinite bound is no JSON and loses the run."""
    paths = [matmuls(tmp_path / "a.onnx", 4), matmuls(tmp_path / "b.onnx", 4)]
    loaded = [runtime.load(path, threads=1) for path in paths]
    found = side_by_side(paths, loaded, samples=60, threads=1, time_s=0.01)
    assert found.ratio["ci95"] == [None, None]
    json.dumps(found.ratio, allow_nan=False)
