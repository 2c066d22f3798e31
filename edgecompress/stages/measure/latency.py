"""The latencies of two files side by side: interleaved, in fresh processes, with what else ran."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgecompress.measure.bootstrap import Interval, interval, ratio_of_medians
from edgecompress.measure.latency import Percentiles
from edgecompress.measure.load import Load, LoadRow
from edgecompress.measure.processes import Measured, Protocol, measure
from edgecompress.measure.runtime import Array, Runtime
from edgecompress.run.schema import LatencyRatio

PROCESSES = 3
"""Fresh processes: where a model lands in memory differs from process to process."""
RUNS = 10
"""Runs per block that `samples` are divided by."""
TIME_S = 20.0
"""Longest measurement, in seconds."""


@dataclass(frozen=True)
class SideBySide:
    """Percentiles of both files, the ratio second / first of their fastest runs with its 95 %
    interval, and what else ran.
    """

    percentiles: tuple[Percentiles, Percentiles]
    ratio: LatencyRatio
    threads: int
    load: LoadRow


def side_by_side(
    paths: Sequence[Path],
    loaded: Sequence[Runtime],
    samples: int,
    threads: int,
    time_s: float = TIME_S,
) -> SideBySide:
    """Measure two files, of which at least about `samples` runs are timed each, unless `time_s`
    seconds end first: a single process has no interval. Files of different inputs are measured one
    after the other.
    """
    protocol = Protocol(
        threads=threads,
        batch_size=1,
        processes=PROCESSES,
        looks=(),
        blocks=max(5, samples // (PROCESSES * RUNS)),
        time_s=time_s,
    )
    first, second = paths
    with Load() as load:
        if loaded[0].described() == loaded[1].described():
            together = measure([first, second], protocol)
            ratios = [blocks[:, 1] / blocks[:, 0] for blocks in together.blocks_ms]
            ratio = interval(ratios)
            taken = (together.samples_ms[0], together.samples_ms[1])
        else:
            apart = [measure([path], protocol) for path in paths]
            ratio = _of_apart(apart)
            taken = (apart[0].samples_ms[0], apart[1].samples_ms[0])
    percentiles = (_percentiles(taken[0]), _percentiles(taken[1]))
    row: LatencyRatio = {"median": ratio.median, "ci95": ratio.bounds()}
    return SideBySide(percentiles, row, threads, load.row)


def _of_apart(apart: Sequence[Measured]) -> Interval:
    return ratio_of_medians(apart[1].blocks_of(0), apart[0].blocks_of(0), 1.0, 0)


def _percentiles(samples_ms: Array) -> Percentiles:
    p50, p90, p99 = (round(float(q), 4) for q in np.percentile(samples_ms, (50, 90, 99)))
    return {"p50": p50, "p90": p90, "p99": p99}
