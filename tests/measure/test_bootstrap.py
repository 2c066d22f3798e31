"""Intervals and verdicts on synthetic timings."""

from __future__ import annotations

import math

import numpy as np

from edgecompress.measure.bootstrap import Interval, blocks_needed, interval, verdict


def timings(
    ratio: float,
    processes: int,
    blocks: int,
    seed: int,
    between: float = 0.01,
    within: float = 0.05,
) -> list[np.ndarray]:
    """Ratios of blocks with a spread between processes and within them."""
    generator = np.random.default_rng(seed)
    shifts = ratio * np.exp(generator.normal(0, between, processes))
    return [shift * np.exp(generator.normal(0, within, blocks)) for shift in shifts]


def test_the_interval_covers_the_true_ratio_at_its_nominal_rate() -> None:
    covered = 0
    for seed in range(200):
        bounds = interval(timings(1.0, 5, 30, seed))
        covered += bounds.low <= 1.0 <= bounds.high
    assert 174 <= covered <= 200, f"{covered} of 200"


def test_few_false_alarms_and_no_missed_regression() -> None:
    alarms = sum(
        verdict(interval(timings(1.0, 5, 30, seed)), 0.03) == "regression" for seed in range(200)
    )
    caught = sum(
        verdict(interval(timings(1.5, 5, 30, seed, 0.03, 0.2)), 0.05) == "regression"
        for seed in range(50)
    )
    assert alarms <= 2
    assert caught == 50


def test_one_outlying_process_does_not_decide() -> None:
    groups = [*timings(1.0, 4, 30, 0), *timings(1.6, 1, 30, 1)]
    assert verdict(interval(groups), 0.05) != "regression"


def test_verdicts_and_the_blocks_that_would_settle_them() -> None:
    assert verdict(Interval(1.1, 1.06, 1.14), 0.05) == "regression"
    assert verdict(Interval(1.0, 0.96, 1.05), 0.05) == "pass"
    undecided = Interval(1.03, 0.97, 1.09)
    assert verdict(undecided, 0.05) == "inconclusive"
    assert blocks_needed(undecided, 0.05, 150) == 150 * 9
    assert blocks_needed(Interval(1.05, 1.0, 1.1), 0.05, 150) is None, (
        "a median at the limit is never settled"
    )


def test_more_looks_have_wider_intervals_and_one_group_has_none() -> None:
    groups = timings(1.0, 5, 30, 0)
    once, thrice = interval(groups), interval(groups, looks=3)
    assert thrice.low < once.low < once.high < thrice.high
    assert interval(groups[:1]).low == -math.inf
