"""Defaults of a training, and the views that its epochs cycle through."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from edgecompress.data import Images, load_data
from edgecompress.train.settings import LARGE_SPLIT, FitSettings, default_settings


def test_a_wide_plain_network_trains_more_slowly_than_others() -> None:
    data = load_data("digits")
    wide = nn.Linear(2000, 2000)
    plain, normalised = (default_settings(wide, data, normalised=n) for n in (False, True))
    small = default_settings(nn.Identity(), data, normalised=False)
    assert plain.learning_rate < normalised.learning_rate == small.learning_rate
    assert plain.epochs < normalised.epochs == small.epochs
    assert plain.dropout == normalised.dropout == 0.0


def test_a_large_split_gets_larger_batches_and_the_networks_own_dropout() -> None:
    data = load_data("digits")
    count = LARGE_SPLIT + 1
    train = Images(
        torch.zeros(count, 3, 1, 1, dtype=torch.uint8), torch.zeros(count, dtype=torch.int64)
    )
    settings = default_settings(nn.Identity(), replace(data, train=train))
    assert (settings.epochs, settings.batch_size, settings.dropout) == (30, 128, None)


def test_sgd_has_a_rate_of_its_own() -> None:
    data = load_data("digits")
    adam, sgd = (default_settings(nn.Identity(), data, optimizer=o) for o in ("adamw", "sgd"))
    assert sgd.learning_rate == 100 * adam.learning_rate
    assert (adam.optimizer, sgd.optimizer) == ("adamw", "sgd")


def test_the_requested_number_of_epochs_wins() -> None:
    assert default_settings(nn.Identity(), load_data("digits"), epochs=7).epochs == 7


def test_views_cycle() -> None:
    assert [FitSettings(5).view(epoch) for epoch in range(1, 6)] == [0, 1, 2, 3, 4]
    assert [FitSettings(5, views=2).view(epoch) for epoch in range(1, 6)] == [0, 1, 0, 1, 0]
