"""Stored baselines: what they must hold, and which machine they are of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest

from edgecompress.errors import UsageError
from edgecompress.measure import baseline as baselines
from edgecompress.measure.processes import Protocol


@pytest.mark.parametrize(
    "change",
    [
        {"blocks_ms": [[-1.0, 1.0], [1.0, 1.0]]},
        {"blocks_ms": [["1"], ["1"]]},
        {"blocks_ms": [[float("inf")], [1.0]]},
        {"blocks_ms": [[0.0], [1.0]]},
        {"reference_ms": 0.0},
        {"schema": 99},
        {"hardware": None},
        {"candidate": {}, "blocks_ms": 5},
    ],
)
def test_an_invalid_baseline_is_refused(
    change: dict[str, Any], files: dict[str, Path], tmp_path: Path
) -> None:
    stored = baselines.stored(files["one"], Protocol(threads=1, processes=2, blocks=2))
    (tmp_path / "b.json").write_text(json.dumps({**stored, **change}))
    with pytest.raises(UsageError, match="baseline"):
        baselines.read_stored(tmp_path / "b.json")


def test_other_instruction_sets_are_another_machine(files: dict[str, Path]) -> None:
    protocol = Protocol(threads=1, processes=2, blocks=2)
    stored = cast(baselines.Baseline, baselines.stored(files["one"], protocol))
    baselines.compare_stored(files["one"], stored, 0.5, protocol, cross_machine=False)
    stored["hardware"]["instructions"] = []
    again = baselines.compare_stored(files["one"], stored, 0.5, protocol)
    assert again["remeasured"], "its file is at hand"
    stored["candidate"]["sha256"] = ""
    with pytest.raises(UsageError, match="pass --cross-machine"):
        baselines.compare_stored(files["one"], stored, 0.5, protocol, cross_machine=False)


def test_what_stays_inconclusive_is_measured_in_more_processes(files: dict[str, Path]) -> None:
    """The stored processes are so far apart that nothing can be said; a clear case ends at once."""
    protocol = Protocol(threads=1, processes=2, looks=(3, 4), blocks=3)
    stored = cast(baselines.Baseline, baselines.stored(files["one"], protocol))
    (typical, *_), *_ = stored["blocks_ms"]
    seen: list[int] = []

    def compared(times: list[float]) -> str:
        baseline = cast(baselines.Baseline, {**stored, "blocks_ms": [[one] * 3 for one in times]})
        seen.clear()
        result = baselines.compare_stored(
            files["one"], baseline, 0.05, protocol, on_process=lambda count, *_: seen.append(count)
        )
        assert result["processes"] == seen[-1]
        return result["verdict"]

    assert compared([typical / 100, typical * 100]) == "inconclusive"
    assert seen == [1, 2, 3, 4]
    assert compared([typical * 100, typical * 100]) == "pass"
    assert seen == [1, 2]
    assert compared([typical / 100, typical / 100]) == "regression"
    assert seen == [1, 2]
