"""The sine problem: its noise floor, and the samples as a data set."""

from __future__ import annotations

import pytest
import torch

from edgecompress.data import load_data
from edgecompress.data.sine import FLOOR, NOISE_STD, load_sine
from edgecompress.errors import UsageError


def test_the_sine_problem_as_a_data_set() -> None:
    data = load_data("sine")
    assert (data.image_shape, len(data.train), len(data.test)) == ((1, 1, 1), 10_000, 10_000)
    x, y = data.normalised(data.test.pixels).flatten(1), data.test.labels
    assert torch.equal(x, data.test.pixels.flatten(1)), "inputs are read as they are"
    best = torch.sin(10 * torch.pi * x)
    assert float(data.task.loss(best, y)) == pytest.approx(FLOOR, rel=0.03)
    assert data.task.score(best, y) == pytest.approx(1 - FLOOR / 0.54, abs=0.01)
    with pytest.raises(UsageError, match="no images"):
        load_data("sine", image_size=32)


def test_splits_are_drawn_independently_and_always_alike() -> None:
    data, again = load_sine(500, 300), load_sine(500, 300)
    assert torch.equal(data.train.x, again.train.x)
    assert (len(data.train.x), len(data.test.x)) == (500, 300)
    assert not torch.equal(data.validation.x, data.test.x)
    noise = data.train.y - torch.sin(10 * torch.pi * data.train.x)
    assert float(noise.std()) == pytest.approx(NOISE_STD, rel=0.1)
