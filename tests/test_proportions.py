"""Intervals of accuracies, against scipy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from edgecompress.proportions import Paired, interval, shown


@given(st.integers(1, 20_000), st.floats(0, 1))
def test_the_interval_is_wilsons(count: int, share: float) -> None:
    right = round(share * count)
    expected = stats.binomtest(right, count).proportion_ci(0.95, method="wilson")
    assert interval(right, count) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_without_samples_nothing_is_known() -> None:
    assert interval(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="5 right of 4"):
        interval(5, 4)


@given(st.integers(0, 400), st.integers(0, 400), st.integers(0, 1000))
def test_the_p_value_is_mcnemars(first: int, second: int, both: int) -> None:
    paired = Paired(first + second + both + 1, first, second)
    if first + second:
        expected = stats.binomtest(first, first + second, 0.5).pvalue
        assert paired.p == pytest.approx(expected, rel=1e-6, abs=1e-12)
    low, high = paired.interval
    assert -1 <= low <= high <= 1
    mirrored = Paired(paired.n, second, first)
    assert mirrored.interval == pytest.approx((-high, -low))
    assert mirrored.difference == -paired.difference


def test_many_differing_samples_are_near_the_exact_test() -> None:
    few, many = Paired(10_000, 470, 520), Paired(10_000, 480, 531)
    for paired in (few, many):
        differ = paired.only_first + paired.only_second
        exact = stats.binomtest(paired.only_first, differ, 0.5).pvalue
        assert paired.p == pytest.approx(exact, abs=0.003)


def test_the_interval_of_a_difference_covers_it_at_its_nominal_rate() -> None:
    """Two classifiers of 80 % and 85 % on 100 samples, right independently of each other."""
    draws = stats.binom.rvs
    covered = 0
    for seed in range(400):
        only_first = draws(100, 0.8 * 0.15, random_state=seed)
        only_second = draws(100 - only_first, 0.2 * 0.85 / 0.88, random_state=seed + 10_000)
        low, high = Paired(100, int(only_first), int(only_second)).interval
        covered += low <= 0.05 <= high
    assert covered >= 370, f"{covered} of 400"


def test_one_image_of_forty_is_no_difference() -> None:
    low, high = Paired(40, 1, 0).interval
    assert low < -0.01 < high


def test_an_accuracy_is_shown_with_what_is_known() -> None:
    assert shown(0.975, 40) == "97.50% (95 % 87.1 to 99.6, n 40)"
