"""The result of a training."""

from __future__ import annotations

from torch import nn

from edgecompress.train.history import EpochRow
from edgecompress.train.learner import FitResult


def test_the_best_row_is_that_of_the_chosen_epoch() -> None:
    rows = tuple(EpochRow(epoch, 1.0, 1.0, epoch / 10, 0.1, 1.0, 1) for epoch in (1, 2, 3))
    assert FitResult(rows, 2, nn.Identity()).best is rows[1]
