"""When a model counts as warm, and as alone on the machine."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import pytest

from edgecompress.measure import latency
from edgecompress.measure.runtime import Input


@dataclass
class Timed:
    """Stands for a loaded model whose n-th run takes as long as `ms` says; the last value is for
    all others.
    """

    ms: list[float]
    threads: int = 1
    runs: int = 0
    taken: list[float] = field(default_factory=list)

    def execute(self, feeds: object) -> None:
        wanted = self.ms[min(self.runs, len(self.ms) - 1)]
        start = time.perf_counter()
        while 1e3 * (time.perf_counter() - start) < wanted:
            pass
        self.runs += 1

    inputs: tuple[Input, ...] = (Input("x", "tensor(float)", (0,)),)
    batch: None = None


def test_a_model_is_warm_when_two_blocks_agree() -> None:
    falling = Timed([60.0] * 5 + [15.0] * 5 + [4.0] * 5 + [1.0])
    assert latency.warm_up(falling, {}, limit_s=60.0) == falling.runs >= 25  # type: ignore[arg-type]


@pytest.mark.parametrize(("threads", "least_ms"), [(1, 0.0), (2, latency.SPIN_MS)])
def test_a_model_settles_until_other_threads_rest(threads: int, least_ms: float) -> None:
    model, start = Timed([2.0], threads), time.perf_counter()
    latency.settle(model, {})  # type: ignore[arg-type]
    assert model.runs >= latency.UNCOUNTED
    assert 1e3 * (time.perf_counter() - start) >= least_ms


def test_turns_leave_the_first_runs_out() -> None:
    slow_first = Timed([1.0] * 10 + [20.0, 20.0] + [1.0])
    other = Timed([1.0])
    one, _ = latency.measure([slow_first, other], samples=20, limit_s=0.5)  # type: ignore[list-item]
    assert max(one.samples_ms) < 15, "the two slow runs came first in its turn"
