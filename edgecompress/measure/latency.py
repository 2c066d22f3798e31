"""Latency of an ONNX file in ONNX Runtime: warm-up until stable, then samples; percentiles in
milliseconds.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from edgecompress.measure.feeds import random_feeds
from edgecompress.measure.runtime import Feeds, Runtime, Shapes

TURN = 10
"""Runs of a model that are timed in a row."""
UNCOUNTED = 2
"""Runs of a model that are not counted after another one has run; of a model that takes longer
than `SPIN_MS`, one.
"""
BLOCK_S = 0.5
"""Seconds after which a block of a warm-up ends."""
SPIN_MS = 50.0
"""Milliseconds for which runs are not counted after another model has run on several threads.

Threads of ONNX Runtime spin for about 40 ms after a run, and take a core from whatever runs next:
measured, one third of the speed of VGG16.
"""
LEAST_SAMPLES = 20


class Percentiles(TypedDict):
    """Percentiles of a duration, in milliseconds."""

    p50: float
    p90: float
    p99: float


@dataclass(frozen=True)
class Latency:
    """Milliseconds of single runs, and their conditions."""

    samples_ms: tuple[float, ...]
    batch: int
    threads: int
    warmup_runs: int

    def percentile(self, q: float) -> float:
        """The q-th percentile (0..100) in milliseconds."""
        return float(np.percentile(self.samples_ms, q))

    def summary(self) -> Percentiles:
        """The percentiles 50, 90 and 99 in milliseconds."""
        return {
            "p50": round(self.percentile(50), 4),
            "p90": round(self.percentile(90), 4),
            "p99": round(self.percentile(99), 4),
        }


def timed(runtime: Runtime, feeds: Feeds) -> float:
    """Milliseconds of one run on `feeds`."""
    start = time.perf_counter_ns()
    runtime.execute(feeds)
    return (time.perf_counter_ns() - start) / 1e6


def warm_up(runtime: Runtime, feeds: Feeds, limit_s: float = 3.0) -> int:
    """Run on `feeds` until the medians of two blocks of 5 runs differ by less than
    5 %, or for `limit_s` seconds. Blocks of a slow model have fewer runs, so that one takes about
    `BLOCK_S`. Returns the number of runs.
    """
    start = time.perf_counter()
    runs = 0
    previous = 0.0
    while True:
        block = [timed(runtime, feeds)]
        while len(block) < 5 and sum(block) < 1e3 * BLOCK_S:
            block.append(timed(runtime, feeds))
        median = float(np.median(block))
        runs += len(block)
        is_stable = abs(median - previous) <= 0.05 * previous
        if is_stable or time.perf_counter() - start > limit_s:
            return runs
        previous = median


def settle(runtime: Runtime, feeds: Feeds) -> None:
    """Run on `feeds`, uncounted, until the model that ran before no longer
    disturbs.
    """
    start = time.perf_counter()
    runs = 0
    while runs == 0 or (
        (runs < UNCOUNTED or runtime.threads > 1) and 1e3 * (time.perf_counter() - start) < SPIN_MS
    ):
        runtime.execute(feeds)
        runs += 1


def measure(
    runtimes: list[Runtime],
    *,
    batch_size: int | None = 1,
    samples: int = 200,
    least: int = LEAST_SAMPLES,
    limit_s: float = 5.0,
    seed: int = 0,
    shapes: Shapes | None = None,
) -> list[Latency]:
    """Latency of each model, measured in turns of `TURN` runs, so that a drift of the machine
    affects all alike.

    The first runs of a turn are left out (`settle`): another model has emptied the caches, and its
    threads still spin. At least about `least` samples each; then up to `samples`, or until
    `limit_s` seconds per model are over. Inputs are random (`feeds.random_feeds`); `batch_size`
    None takes the file's own, else 1.
    """
    generator = np.random.default_rng(seed)
    inputs = [random_feeds(runtime, batch_size, generator, shapes) for runtime in runtimes]
    pairs = list(zip(runtimes, inputs, strict=True))
    warmup_runs = [warm_up(runtime, feeds, min(3.0, 3 * limit_s)) for runtime, feeds in pairs]
    taken: list[list[float]] = [[] for _ in runtimes]
    start = time.perf_counter()
    while len(taken[0]) < samples:
        is_late = time.perf_counter() - start > limit_s * len(runtimes)
        if is_late and len(taken[0]) >= least:
            break
        for (runtime, feeds), times in zip(pairs, taken, strict=True):
            if len(runtimes) > 1:
                settle(runtime, feeds)
            times += [timed(runtime, feeds) for _ in range(TURN)]
    return [
        Latency(tuple(times), batch_size or runtime.batch or 1, runtime.threads, runs)
        for times, runtime, runs in zip(taken, runtimes, warmup_runs, strict=True)
    ]
