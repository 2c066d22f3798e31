"""Successive halving: who goes on, for how long, and who is left."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgecompress.stages.halving import MORE, halved, length, winner


def by_value(one: float) -> tuple[float, ...]:
    return (one,)


def test_the_better_half_goes_on() -> None:
    assert halved([3.0, 1.0, 2.0], by_value) == [1.0, 2.0]
    assert halved([1.0, 2.0], by_value) == [1.0]
    assert halved([5.0], by_value) == [5.0]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_the_best_is_left_and_the_trainings_have_the_length_that_was_foretold(
    values: list[float],
) -> None:
    spent = [1] * len(values)  # the first round

    def train(_: float, number: int) -> None:
        spent.append(MORE**number)

    assert winner(values, train, by_value) == min(values)
    assert sum(spent) == length(len(values))
