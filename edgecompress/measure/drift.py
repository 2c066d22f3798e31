"""Slow drifts of latency over many commits, each too small for the gate: change points of a series.

E-divisive (Matteson and James 2014, "A nonparametric approach for multiple change point analysis of
multivariate data"): of all splits of a series into X and Y, the one with the largest

    n m / (n + m) (2 E|x - y| - E|x - x'| - E|y - y'|)

is a change point if fewer than `SIGNIFICANCE` of random orders of the series have a larger one.
Then each part is searched alike.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from typing_extensions import TypedDict

from edgecompress import files, git
from edgecompress.errors import UsageError
from edgecompress.measure.requests import Conditions, FileRow
from edgecompress.measure.runtime import Array

SHORTEST = 3
"""Measurements in the shortest part of a series."""
PERMUTATIONS = 199
SIGNIFICANCE = 0.05
SAME = ("batch", "threads", "provider", "input")
"""Conditions under which measurements are one series, besides the file's name, the machine and the
runtime.
"""
COMMITS = ("GITHUB_SHA", "CI_COMMIT_SHA", "GIT_COMMIT", "BUILD_SOURCEVERSION")
"""Variables in which CI systems name the commit."""


class Entry(TypedDict):
    """One line of a history: when, of which commit, how fast, and under which conditions."""

    time: float
    commit: str | None
    file: str
    bytes: int
    fastest_ms: float
    conditions: dict[str, object]


@dataclass(frozen=True)
class Drift:
    """A series that ends slower than it once was: by `share` (0.08: 8 %), since the entry number
    `began` (from 0).
    """

    began: int
    share: float


def change_points(values: Sequence[float], seed: int = 0) -> list[int]:
    """The first index of each part of `values` but the first, in order."""
    generator = np.random.default_rng(seed)
    series = np.asarray(values, dtype=np.float64)
    points: list[int] = []
    pending = [(0, len(series))]
    while pending:
        start, end = pending.pop()
        place = _change_point(series[start:end], generator)
        if place is not None:
            points.append(start + place)
            pending += [(start, start + place), (start + place, end)]
    return sorted(points)


def _change_point(series: Array, generator: np.random.Generator) -> int | None:
    """The one split of `series` (n,) that is significant, if any is."""
    if len(series) < 2 * SHORTEST:
        return None
    distances = np.abs(series[:, None] - series[None])  # (n, n)
    place, largest = _best_split(distances)
    larger = 0
    for _ in range(PERMUTATIONS):
        order = generator.permutation(len(series))
        larger += _best_split(distances[np.ix_(order, order)])[1] >= largest
    return place if (larger + 1) / (PERMUTATIONS + 1) <= SIGNIFICANCE else None


def _best_split(distances: Array) -> tuple[int, float]:
    """The split with the largest energy statistic, from the distances (n, n) of all pairs."""
    count = len(distances)
    sums = np.zeros((count + 1, count + 1))
    sums[1:, 1:] = distances.cumsum(0).cumsum(1)  # sums[i, j]: of the first i rows and j columns
    splits = np.arange(SHORTEST, count - SHORTEST + 1)
    first, second = splits.astype(np.float64), (count - splits).astype(np.float64)

    within_first = sums[splits, splits]
    between = sums[splits, count] - within_first
    within_second = sums[count, count] - within_first - 2 * between
    statistic = (
        first
        * second
        / (first + second)
        * (
            2 * between / (first * second)
            - within_first / (first * np.maximum(first - 1, 1))
            - within_second / (second * np.maximum(second - 1, 1))
        )
    )
    best = int(statistic.argmax())
    return int(splits[best]), float(statistic[best])


def drift(values: Sequence[float], tolerance: float, seed: int = 0) -> Drift | None:
    """How much slower the last part of a series of durations is than its fastest earlier part, and
    where the part after that began; None where it is at most `tolerance`.
    """
    bounds = [0, *change_points(values, seed), len(values)]
    levels = [float(np.median(values[a:b])) for a, b in itertools.pairwise(bounds)]
    fastest = int(np.argmin(levels))
    share = levels[-1] / levels[fastest] - 1
    if fastest == len(levels) - 1 or share <= tolerance:
        return None
    return Drift(bounds[fastest + 1], share)


def entry_of(row: FileRow, blocks_ms: Sequence[Sequence[float]], conditions: Conditions) -> Entry:
    """The line of a history for a measured file; `blocks_ms` are its fastest runs by process."""
    hardware = conditions["hardware"]
    same: dict[str, object] = {
        **{key: value for key, value in conditions.items() if key in SAME},
        "file": Path(row["file"]).name,
        "cpu": hardware.get("cpu"),
        "instructions": hardware.get("instructions"),
        "cores": hardware.get("cores"),
        "onnxruntime": conditions["versions"].get("onnxruntime"),
    }
    return {
        "time": round(time.time(), 3),
        "commit": commit(),
        "file": row["file"],
        "bytes": row["bytes"],
        "fastest_ms": float(np.median(np.concatenate([np.asarray(b) for b in blocks_ms]))),
        "conditions": same,
    }


def commit() -> str | None:
    """The commit that is measured: as CI says, else that of the working folder."""
    for name in COMMITS:
        if os.environ.get(name):
            return os.environ[name]
    return git.head_commit(Path.cwd())


def read_history(path: Path) -> list[Entry]:
    """The entries in a history file, none where there is no such file.

    Raises `UsageError` for another file.
    """
    if not path.exists():
        return []
    entries: list[Entry] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            entries.append(_entry(json.loads(line)))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UsageError(
                f"history '{path}' line {number} is no measurement: give a file that bench "
                "--history wrote, or a new one"
            ) from error
    return entries


def _entry(values: Mapping[str, object]) -> Entry:
    known = values["commit"]
    conditions = values["conditions"]
    if not isinstance(conditions, dict):
        raise TypeError("conditions")
    return {
        "time": float(str(values["time"])),
        "commit": None if known is None else str(known),
        "file": str(values["file"]),
        "bytes": int(str(values["bytes"])),
        "fastest_ms": float(str(values["fastest_ms"])),
        "conditions": conditions,
    }


def appended(path: Path, entry: Entry) -> list[Entry]:
    """Append `entry` to the history at `path`; returns the entries of its series, in order."""
    series = [old for old in read_history(path) if old["conditions"] == entry["conditions"]]
    files.append_line(path, entry)
    return [*series, entry]
