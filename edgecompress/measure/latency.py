"""Latency of an ONNX file in ONNX Runtime: warm-up until stable, then samples; percentiles in
milliseconds.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from edgecompress.measure.runtime import Array, Runtime

TURN = 10
"""Runs of a model that are timed in a row."""
UNCOUNTED, SPIN_MS = 2, 50.0
"""Runs of a model that are not counted after another has run: so many, and where they use several
threads for so many milliseconds.

Threads of ONNX Runtime spin for about 40 ms after a run, and take a core from whoever runs next:
measured, one third of the speed of VGG16.
"""


@dataclass(frozen=True)
class Latency:
    """Samples (ms) of single runs, and what was run."""

    samples_ms: tuple[float, ...]
    batch: int
    threads: int
    warmup_runs: int

    def percentile(self, q: float) -> float:
        """The q-th percentile (0..100) in milliseconds."""
        return float(np.percentile(self.samples_ms, q))

    def summary(self) -> dict[str, float]:
        """`{"p50", "p90", "p99"}` in milliseconds."""
        return {f"p{q}": round(self.percentile(q), 4) for q in (50, 90, 99)}


def _timed(runtime: Runtime, batch: Array) -> float:
    start = time.perf_counter_ns()
    runtime.run(batch)
    return (time.perf_counter_ns() - start) / 1e6


def warm_up(runtime: Runtime, batch: Array, limit_s: float = 3.0) -> int:
    """Run until the medians of two blocks of 5 runs differ by less than 5 %, or for `limit_s`
    seconds. Returns the runs.
    """
    start, runs, last = time.perf_counter(), 0, 0.0
    while True:
        median = float(np.median([_timed(runtime, batch) for _ in range(5)]))
        runs += 5
        if abs(median - last) <= 0.05 * last or time.perf_counter() - start > limit_s:
            return runs
        last = median


def settle(runtime: Runtime, batch: Array) -> None:
    """Run uncounted until what ran before is not in the way any more."""
    start, runs = time.perf_counter(), 0
    while runs < UNCOUNTED or (
        runtime.threads > 1 and 1e3 * (time.perf_counter() - start) < SPIN_MS
    ):
        runtime.run(batch)
        runs += 1


def measure(
    runtimes: list[Runtime],
    *,
    batch_size: int = 1,
    samples: int = 200,
    limit_s: float = 5.0,
    seed: int = 0,
) -> list[Latency]:
    """Latency of each model, taken in turns of `TURN` runs, so that a drift of the machine meets
    them alike.

    The first runs of a turn are left out (`settle`): another model has emptied the caches, and its
    threads still spin. At least 20 samples each; then up to `samples`, or until `limit_s` seconds a
    model are over. Inputs are standard normal.
    """
    generator = np.random.default_rng(seed)
    inputs = [r.random_batch(batch_size, generator) for r in runtimes]
    warm = [warm_up(r, x) for r, x in zip(runtimes, inputs, strict=True)]
    taken: list[list[float]] = [[] for _ in runtimes]
    start = time.perf_counter()
    while len(taken[0]) < samples:
        if len(taken[0]) >= 20 and time.perf_counter() - start > limit_s * len(runtimes):
            break
        for place, (runtime, batch) in enumerate(zip(runtimes, inputs, strict=True)):
            if len(runtimes) > 1:
                settle(runtime, batch)
            taken[place] += [_timed(runtime, batch) for _ in range(TURN)]
    return [
        Latency(tuple(ms), batch_size, runtime.threads, runs)
        for ms, runtime, runs in zip(taken, runtimes, warm, strict=True)
    ]
