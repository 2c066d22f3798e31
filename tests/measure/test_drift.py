"""Slow drifts in a history of measurements."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgecompress.errors import UsageError
from edgecompress.measure import drift as drifts
from edgecompress.measure.drift import change_points, drift


def series(levels: list[tuple[float, int]], noise: float, seed: int) -> list[float]:
    """`count` durations of each level, with relative noise."""
    generator = np.random.default_rng(seed)
    values = np.concatenate([np.full(count, level) for level, count in levels])
    return list(values * np.exp(generator.normal(0, noise, len(values))))


@pytest.mark.parametrize("seed", range(5))
def test_steps_are_found_where_they_are(seed: int) -> None:
    values = series([(1.0, 12), (1.1, 10), (0.9, 15)], 0.01, seed)
    assert {12, 22} <= set(change_points(values))


def test_a_steady_series_has_few_false_change_points() -> None:
    false = sum(bool(change_points(series([(1.0, 25)], 0.02, seed))) for seed in range(60))
    assert false <= 8, "one in twenty by construction"


@pytest.mark.parametrize("seed", range(5))
def test_two_per_cent_a_week_are_found_with_the_commit_where_it_began(seed: int) -> None:
    """Five commits a week; each week is below a tolerance of 5 %."""
    weeks = [(1.0, 20), *((1.02**week, 5) for week in range(1, 6))]
    found = drift(series(weeks, 0.005, seed), 0.05)
    assert found is not None
    assert 18 <= found.began <= 26
    assert found.share == pytest.approx(1.02**5 - 1, abs=0.03)


def test_what_became_faster_or_stayed_is_no_drift() -> None:
    assert drift(series([(1.0, 15), (0.8, 15)], 0.01, 0), 0.05) is None
    assert drift(series([(1.0, 15), (1.03, 15)], 0.005, 0), 0.05) is None
    assert drift(series([(1.0, 30)], 0.02, 0), 0.05) is None
    assert drift([1.0, 9.0], 0.05) is None, "too few to say"


def entry(ms: float, commit: str, threads: int = 1) -> drifts.Entry:
    return {
        "time": 0.0,
        "commit": commit,
        "file": "m.onnx",
        "bytes": 10,
        "fastest_ms": ms,
        "conditions": {"threads": threads},
    }


def test_only_equal_conditions_are_one_series(tmp_path: Path) -> None:
    path = tmp_path / "h.jsonl"
    assert drifts.appended(path, entry(1.0, "a")) == [entry(1.0, "a")]
    drifts.appended(path, entry(2.0, "b", threads=2))
    assert drifts.appended(path, entry(1.5, "c")) == [entry(1.0, "a"), entry(1.5, "c")]
    assert len(drifts.read_history(path)) == 3


def test_another_file_is_no_history(tmp_path: Path) -> None:
    path = tmp_path / "h.jsonl"
    path.write_text(json.dumps(entry(1.0, "a")) + "\n{}\n")
    with pytest.raises(UsageError, match=r"line 2 is no measurement"):
        drifts.read_history(path)


def test_the_commit_is_that_of_ci_or_of_the_working_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GITHUB_SHA", "abc")
    assert drifts.commit() == "abc"
    for name in drifts.COMMITS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    assert drifts.commit() is None
