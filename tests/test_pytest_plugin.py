"""The fixture `latency` of the pytest plugin."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edgecompress.errors import UsageError
from edgecompress.pytest_plugin import check_latency
from tests.measure.models import matmuls


def test_the_fixture_of_the_pytest_plugin(tmp_path: Path) -> None:
    """A project's own test, run by pytest in a process of its own: the fixture is there without an
    import.
    """
    one = str(matmuls(tmp_path / "one.onnx", 4))
    three = str(matmuls(tmp_path / "three.onnx", 12))
    (tmp_path / "test_speed.py").write_text(
        "def test_faster(latency):\n"
        f"    result = latency({one!r}, against={three!r}, "
        "threads=1, processes=2, blocks=8, looks=())\n"
        "    assert result['verdict'] == 'pass'\n"
        "def test_slower(latency):\n"
        f"    latency({three!r}, against={one!r}, "
        "max_regression=0.05, threads=1, processes=2, blocks=8)\n"
    )
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "test_speed.py",
    ]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=200
    )
    assert "1 failed, 1 passed" in done.stdout, done.stdout + done.stderr
    assert "regression: candidate" in done.stdout


@pytest.mark.parametrize(
    "options",
    [
        {"max_regression": 5},
        {"max_regression": float("nan")},
        {"max_regression": -0.9},
        {"max_regression": "fast"},
        {"processes": 0},
        {"blocks": 0},
        {"time_s": float("nan")},
        {"threads": 0},
    ],
)
def test_values_out_of_range_are_refused_before_measuring(options: dict[str, object]) -> None:
    """No file is there, so nothing could be measured."""
    with pytest.raises(UsageError, match=str(next(iter(options.values())))):
        check_latency("no.onnx", against="no.onnx", **options)  # type: ignore[arg-type]


def test_a_tolerance_may_be_text(tmp_path: Path) -> None:
    one = matmuls(tmp_path / "one.onnx", 2)
    result = check_latency(
        one, against=one, max_regression="90%", threads=1, processes=2, blocks=5, looks=()
    )
    assert result["max_regression"] == 0.9
