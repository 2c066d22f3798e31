"""Epochs fitted to a time: what an epoch takes, and that measuring it leaves no trace."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from edgecompress.data import DataSet
from edgecompress.methods.features import FeatureLoss, default_pairs
from edgecompress.methods.qat import QuantAware
from edgecompress.models import ModelSource, build
from edgecompress.train.fit import FitResult, Hooks, Loss, fit, label_loss
from edgecompress.train.pace import DRIFT, MOST, Lap, Pace
from edgecompress.train.settings import FitSettings
from tests.train.test_resume import EXAMPLE, small_data

CPU = torch.device("cpu")


@given(st.floats(0.001, 1), st.floats(0.001, 1), st.integers(2, MOST), st.integers(1, 1000))
def test_an_epoch_is_one_first_step_and_many_others(
    first: float, other: float, measured: int, steps: int
) -> None:
    lap = Lap([first, *[other] * (measured - 1)])
    assert lap.epoch_s(steps) == pytest.approx(max(first, other) + (steps - 1) * other)


def test_the_epochs_that_fit_best_are_at_least_one() -> None:
    assert Pace(10.0).begin(1.04) == 10
    assert Pace(10.0).begin(0.96) == 10
    assert Pace(10.0).begin(30.0) == 1
    assert Pace(10.0).begin(2.0, done=3) == 8


def test_epochs_are_counted_anew_only_where_the_end_would_be_missed() -> None:
    pace = Pace(1.0)
    assert pace.begin(0.1) == 10
    time.sleep(0.3)  # one epoch, three times as long as measured
    assert pace.after(1) in (2, 3)
    pace = Pace(100.0)
    assert pace.begin(0.1) == 1000
    pace._since -= 0.1 * (1 + DRIFT / 2)
    pace._began -= 0.1 * (1 + DRIFT / 2)
    assert pace.after(1) == 1000


def student(seed: int = 0, name: str = "student1") -> nn.Module:
    torch.manual_seed(seed)
    return build(ModelSource(name, 10, (3, 32, 32)))


def plain(_: DataSet) -> tuple[nn.Module, Loss, Hooks]:
    return student(), label_loss, Hooks()


def with_adapters(data: DataSet) -> tuple[nn.Module, Loss, Hooks]:
    model, teacher = student(), student(1, "resnet20").eval()
    pairs = default_pairs(model, teacher, EXAMPLE, EXAMPLE)
    loss = FeatureLoss.of_pairs("hint", pairs, model, teacher, data.preprocess, label_loss)
    return model, loss, Hooks(companion=loss)


def on_a_grid(data: DataSet) -> tuple[nn.Module, Loss, Hooks]:
    aware = QuantAware(student(name="lenet5"), reduce_range=False, bits={"features.3": 4})
    aware.calibrate(data.normalised(data.train.pixels[:64]))
    return aware, label_loss, Hooks()


@pytest.mark.parametrize("case", [plain, with_adapters, on_a_grid])
def test_measuring_leaves_no_trace(
    case: Callable[[DataSet], tuple[nn.Module, Loss, Hooks]],
) -> None:
    """A training for so short a time that one epoch fits is that of one epoch."""
    data = small_data()

    def trained(settings: FitSettings) -> FitResult:
        model, loss, hooks = case(data)
        return fit(model, data, loss, settings, seed=3, device=CPU, hooks=hooks)

    one = FitSettings(1, 64, 2e-3, average=0.3)
    expected, actual = trained(one), trained(replace(one, epochs=9, time_s=1e-3))
    assert len(actual.history) == 1
    assert actual.history[0].train_loss == expected.history[0].train_loss
    for name, value in expected.model.state_dict().items():
        assert torch.equal(actual.model.state_dict()[name], value), name


def test_the_rate_ends_at_zero_when_the_time_ends() -> None:
    settings = FitSettings(99, 64, 2e-3, time_s=2.0)
    begun = time.perf_counter()
    result = fit(student(name="lenet5"), small_data(), label_loss, settings, seed=0, device=CPU)
    epoch_s = max(row.seconds for row in result.history)
    assert time.perf_counter() - begun < 2.0 + 2 * epoch_s + 3.0
    assert 1 <= len(result.history) < 99
    assert result.history[-1].learning_rate < 0.5 * max(r.learning_rate for r in result.history)
