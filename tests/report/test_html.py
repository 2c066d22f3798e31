"""What the final table says of two latencies."""

from __future__ import annotations

from typing import cast

import pytest

from edgecompress.report.html import comparison, distillation
from edgecompress.run.schema import RunResult

SIDE = {
    "bytes": 100,
    "params": 10,
    "macs": 10,
    "accuracy": 0.9,
    "n": 100,
    "ci95": [0.82, 0.95],
    "threads": 1,
    "latency_ms": {"p50": 1.0, "p90": 1.0, "p99": 1.0},
}


@pytest.mark.parametrize(
    ("median", "ci95", "noisy", "text"),
    [
        (0.5, [0.4, 0.625], False, "2x faster (1.6 to 2.5)"),
        (2.0, [1.6, 2.5], False, "2x slower (1.6 to 2.5)"),
        (0.99, [0.971, 1.01], False, "no clear difference (0.971 to 1.01 of the time)"),
        (1.01, [0.98, 1.02], True, "no clear difference (0.98 to 1.02 of the time), noisy"),
        (0.5, [None, None], False, "2x faster (too few processes for an interval)"),
    ],
)
def test_a_latency_is_called_faster_only_where_it_clearly_is(
    median: float, ci95: list[float | None], noisy: bool, text: str
) -> None:
    result = {
        "teacher": SIDE,
        "student": SIDE,
        "latency_ratio": {"median": median, "ci95": ci95},
        "load": {"noisy": noisy},
    }
    rows = comparison(cast(RunResult, result))
    (shown,) = [row[3] for row in rows if row[0].startswith("p50 latency")]
    assert shown == text


@pytest.mark.parametrize(
    ("row", "shown"),
    [
        ({"n": 100, "ci95": [0.82, 0.95], "accuracy": 0.9}, "90.00% (95 % 82.6 to 94.5, n 100)"),
        ({"n": 100, "accuracy": 0.9}, "90.00%"),
    ],
    ids=["classification", "regression"],
)
def test_a_score_that_is_no_share_of_samples_has_no_interval(
    row: dict[str, object], shown: str
) -> None:
    distill = {"validation_accuracy": 0.9, "params": 10, "weights_bytes": 40}
    result = {"model": "mlp", "distill": distill, "stages": [row]}
    assert distillation(cast(RunResult, result))[0][3] == shown
