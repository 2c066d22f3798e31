"""The learning rate over a run."""

from __future__ import annotations

import pytest
import torch

from edgecompress.train.schedule import LOWEST, SCHEDULES, factor


@pytest.mark.parametrize("schedule", [name for name in SCHEDULES if name != "multistep"])
def test_the_rate_rises_linearly_then_falls_as_the_schedule(schedule: str) -> None:
    factors = [factor(schedule, step, 100, 0.1) for step in range(100)]
    assert factors[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[10] == 1.0
    assert factors[-1] == 1.0 if schedule == "constant" else factors[-1] < 0.02
    assert factor(schedule, 0, 100, 0.0) == 1.0


def test_the_middle_of_the_decay() -> None:
    assert factor("linear", 55, 100, 0.1) == pytest.approx(0.5)
    assert factor("cosine", 55, 100, 0.1) == pytest.approx(0.5)
    assert factor("cosine", 32, 100, 0.1) > factor("linear", 32, 100, 0.1)


def test_the_rate_never_reaches_zero() -> None:
    for schedule in ("linear", "cosine"):
        assert factor(schedule, 100, 100, 0.1) == LOWEST
        assert factor(schedule, 500, 100, 0.1) >= LOWEST


def test_milestones_are_those_of_torch() -> None:
    """`MultiStepLR`, epoch by epoch; far below what the other schedules stop at."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    expected = torch.optim.lr_scheduler.MultiStepLR(optimizer, [100, 150, 220, 290], 0.1)
    shares = [one / 300 for one in (100, 150, 220, 290)]
    for epoch in range(300):
        for step in (7 * epoch, 7 * epoch + 6):
            found = factor("multistep", step, 300 * 7, 0.0, shares, 0.1)
            assert found == pytest.approx(expected.get_last_lr()[0])
        optimizer.step()
        expected.step()
