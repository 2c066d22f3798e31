"""The statistics of strategies, and the sine experiment at a small scale."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecompress.data.sine import load_sine
from edgecompress.errors import UsageError
from edgecompress.methods.compare import (
    FIRST_SEED,
    SineSetting,
    compared,
    sine_experiment,
    stepped,
    summary,
    versus,
)

VALUES = st.lists(st.floats(-10, 10, allow_subnormal=False), min_size=3, max_size=12)


def test_summary() -> None:
    assert summary([1.0, 2.0, 6.0]) == {
        "min": 1.0,
        "max": 6.0,
        "median": 2.0,
        "mean": 3.0,
        "std": pytest.approx(np.sqrt(7)),
    }


@given(VALUES, VALUES)
def test_cliffs_delta_by_counting(first: list[float], second: list[float]) -> None:
    """The share of pairs in which the first is higher, less the share in which it is lower; and its
    sign changes with the order.
    """
    by_hand = sum((a > b) - (a < b) for a in first for b in second) / (len(first) * len(second))
    comparison = versus(first, second)
    assert comparison["effect"] == pytest.approx(by_hand, abs=1e-9)
    assert versus(second, first)["effect"] == pytest.approx(-by_hand, abs=1e-9)
    assert 0 <= comparison["p"] <= 1


def test_paired_results_are_compared_with_their_partner() -> None:
    first = [0.1 * n for n in range(12)]
    second = [value + 0.01 * (n + 1) for n, value in enumerate(first)]
    comparison = versus(first, second, paired=True)
    assert comparison["effect"] == pytest.approx(-1.0)
    assert comparison["p"] < 0.001
    assert versus(first, second)["p"] > 0.3, "unpaired, the same difference is hidden by the spread"
    assert versus(first, first, paired=True) == {"test": "wilcoxon", "p": 1.0, "effect": 0.0}


def test_equal_distributions_rarely_differ_significantly() -> None:
    generator = np.random.default_rng(0)
    alarms = sum(
        versus(generator.normal(size=20), generator.normal(size=20))["p"] < 0.05 for _ in range(400)
    )
    assert 8 <= alarms <= 32, "about 5 % of 400"


def test_the_sine_experiment_at_a_small_scale() -> None:
    phases: list[str] = []
    results, best = sine_experiment(
        load_sine(600, 300), SineSetting(budget=12, repeats=3, hidden=12), phases.append
    )
    assert set(results) == {"student", "bo3", "one", "distilled"}
    assert all(
        len(values) == 3 and all(0.03 < value < 2 for value in values)
        for values in results.values()
    )
    assert phases[0] == "9 networks, 4 epochs"
    assert sum(p.numel() for p in best.parameters()) == 3 * 12 + 1, (
        "the best student has the size of its parents"
    )
    statistics = compared(results)
    assert statistics["student_against"]["one"]["test"] == "mann-whitney"
    repeated, _ = sine_experiment(load_sine(600, 300), SineSetting(budget=12, repeats=3, hidden=12))
    assert repeated == results, "the same seed, the same results"


def test_a_budget_is_a_multiple_of_six() -> None:
    with pytest.raises(UsageError, match=r"budget 20 is not a multiple of 6: .* give e\.g\. 18"):
        SineSetting(budget=20)


def test_phases_and_runs_have_seeds_of_their_own() -> None:
    settings = [SineSetting(seed=seed, repeats=50) for seed in range(3)]
    seeds = [n for setting in settings for phase in FIRST_SEED for n in setting.seeds(phase, 150)]
    assert len(set(seeds)) == len(seeds)


def test_the_rate_falls_to_a_tenth() -> None:
    rate = stepped(0.01, 8 / 9, 900)
    assert [rate(epoch) for epoch in (1, 800, 801, 900)] == [0.01, 0.01, 0.001, 0.001]


def test_equal_differences_of_shares_are_ties() -> None:
    """Accuracies are counts of images: 0.91 - 0.90 and 0.81 - 0.80 are one image in a hundred each,
    however floats write it.
    """
    counts = np.array([[91, 90], [81, 80], [77, 79], [60, 57], [52, 50], [45, 44]])
    shares = versus(*(counts / 100).T, paired=True)
    assert shares == versus(*counts.T.astype(float), paired=True)


def test_no_two_runs_share_a_repeats_seed() -> None:
    from edgecompress.stages.compare.work import seed_of

    seeds = [seed_of(1000 * seed + 1, repeat) for seed in range(200) for repeat in range(50)]
    assert len({*seeds}) == len(seeds)
    assert [seed_of(1, repeat) for repeat in (0, 1, 9)] == [1, 101, 901]
