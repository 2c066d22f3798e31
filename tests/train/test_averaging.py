"""Averaged weights: what they are the average of, and that they are the ones that are kept."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgecompress.data import load_data
from edgecompress.models import ModelSource, build
from edgecompress.train.averaging import EVERY, Averaged
from edgecompress.train.batches import evaluate
from edgecompress.train.fit import Hooks, fit, label_loss
from edgecompress.train.history import EpochRow
from edgecompress.train.settings import FitSettings
from tests.train.test_resume import small_data


def set_to(model: nn.Linear, value: float) -> None:
    with torch.no_grad():
        model.weight.fill_(value)


def averaged_over(values: list[float], share: float) -> float:
    """The average of a weight that had `values` after the steps."""
    model = nn.Linear(1, 1, bias=False)
    set_to(model, 7.0)
    average = Averaged(model, share, len(values))
    for value in values:
        set_to(model, value)
        average.update(model)
    return average.values["weight"].item()


@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=60), st.floats(0.01, 0.99))
@settings(max_examples=50, deadline=None)
def test_nothing_is_left_of_the_weights_before_the_training(
    values: list[float], share: float
) -> None:
    """These were 7: the average lies within what it saw."""
    assert min(values) - 1e-6 <= averaged_over(values, share) <= max(values) + 1e-6


def test_a_short_average_is_the_mean_and_a_long_one_forgets_exponentially() -> None:
    assert averaged_over([1.0, 2.0, 3.0], 0.99) == pytest.approx(2.0, abs=0.01)
    constant = 40  # steps, of 400; updated every EVERY steps
    jump = averaged_over([0.0] * 200 + [1.0] * 200, constant / 400)
    assert constant / 4 >= EVERY
    assert jump == pytest.approx(1 - (1 - EVERY / constant) ** (200 / EVERY))
    assert jump == pytest.approx(1 - math.exp(-200 / constant), abs=0.01)


def test_the_networks_own_weights_come_back() -> None:
    model = nn.Linear(1, 1, bias=False)
    set_to(model, 1.0)
    average = Averaged(model, 0.5, 10)
    set_to(model, 3.0)
    with average.in_place(model):
        assert model.weight.item() == 1.0
    assert model.weight.item() == 3.0


@pytest.mark.parametrize("eligible", [True, False])
def test_what_was_validated_is_what_is_kept(eligible: bool) -> None:
    """The averaged network, with its own statistics; also where no epoch may be chosen."""
    data = small_data()
    rows: list[EpochRow] = []

    def trained(average: float) -> nn.Module:
        torch.manual_seed(0)
        model = build(ModelSource("student1", 10, (3, 32, 32)))
        hooks = Hooks(on_epoch=rows.append, eligible=lambda _: eligible)
        how = FitSettings(2, 32, 1e-2, optimizer="sgd", schedule="constant", average=average)
        return fit(
            model, data, label_loss, how, seed=0, device=torch.device("cpu"), hooks=hooks
        ).model

    last, average = trained(0.0), trained(0.5)
    differ = [
        not torch.equal(a, b) for a, b in zip(last.parameters(), average.parameters(), strict=True)
    ]
    assert all(differ)
    loss, _ = evaluate(average, data, data.validation, torch.device("cpu"))
    ours = [row.validation_loss for row in rows[2:]]
    assert loss == pytest.approx(min(ours) if eligible else ours[-1], rel=1e-5)


def test_digits_are_learned_with_averaged_weights() -> None:
    data = load_data("digits")
    torch.manual_seed(0)
    model = build(ModelSource("lenet5", 10, (3, 32, 32)))
    how = FitSettings(2, 32, 1e-3, average=0.1)
    result = fit(model, data, label_loss, how, seed=0, device=torch.device("cpu"))
    assert result.best.validation_accuracy > 0.7
