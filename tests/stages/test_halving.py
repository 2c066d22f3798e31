"""Successive halving: who goes on, for how long, and who is left."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgecompress.data import Images, load_data
from edgecompress.run.context import Context, Silent
from edgecompress.run.directory import RunDirectory
from edgecompress.run.stage import RunSettings
from edgecompress.stages.halving import MORE, halved, length, on_few, winner
from edgecompress.train.settings import LARGE_SPLIT


def test_a_contest_sees_at_most_so_many_images_of_each_class_in_proportion() -> None:
    data = load_data("digits")
    many = Images(data.train.pixels[:2].repeat(6000, 1, 1, 1), torch.tensor([0, 0, 1]).repeat(4000))
    context = Context(
        data=replace(data, train=many),
        device=torch.device("cpu"),
        seed=0,
        recipe=RunSettings(model="lenet5", stages=()),
        run=RunDirectory(Path()),
        folder=Path(),
        reporter=Silent(),
        threads=1,
    )
    few = on_few(context)
    assert len(few.data.train) == pytest.approx(LARGE_SPLIT, abs=1)
    assert few.data.train.labels.float().mean().item() == pytest.approx(1 / 3, abs=1e-3)
    assert few.data.validation is context.data.validation
    assert on_few(few) is few


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
