"""What outputs are for: losses and scores of classification, regression, and several heads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from edgecompress.data import load_data
from edgecompress.data.joined import joined, part_of
from edgecompress.data.sine import FLOOR
from edgecompress.data.task import Heads, Regression, Task
from edgecompress.errors import UsageError


@given(st.integers(0, 1000), st.floats(0, 0.3))
def test_one_head_is_a_plain_classification(seed: int, smoothing: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    outputs, labels = (
        torch.randn(12, 5, generator=generator),
        torch.randint(0, 5, (12,), generator=generator),
    )
    torch.testing.assert_close(
        Heads((5,)).loss(outputs, labels, smoothing), Task().loss(outputs, labels, smoothing)
    )
    assert Heads((5,)).score(outputs, labels) == pytest.approx(Task().score(outputs, labels))


@given(st.integers(0, 1000))
def test_each_head_sees_its_own_samples_only(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    outputs, labels = (
        torch.randn(30, 7, generator=generator),
        torch.randint(0, 7, (30,), generator=generator),
    )
    task, first = Heads((3, 4)), labels < 3
    wanted = (
        F.cross_entropy(outputs[first, :3], labels[first], reduction="sum")
        + F.cross_entropy(outputs[~first, 3:], labels[~first] - 3, reduction="sum")
    ) / 30
    torch.testing.assert_close(task.loss(outputs, labels), wanted)
    disturbed = outputs.clone()
    disturbed[first, 3:] += 100
    torch.testing.assert_close(task.loss(disturbed, labels), wanted)
    assert task.score(disturbed, labels) == task.score(outputs, labels)


def test_r2_is_the_share_of_explained_variance() -> None:
    labels = torch.tensor(np.random.default_rng(0).normal(size=(500, 2)))
    assert Regression().score(labels, labels) == 1
    assert Regression().score(labels.mean(0).expand_as(labels), labels) == pytest.approx(
        0, abs=1e-12
    )
    assert Regression().score(-labels, labels) < 0


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


def test_two_data_sets_as_one() -> None:
    data = load_data("digits+digits")
    one = load_data("digits")
    assert data.task == Heads((10, 10))
    assert len(data.train) == 2 * len(one.train)
    assert data.classes[3] == "digits: 3"
    assert data.test.labels.tolist() == [
        *one.test.labels.tolist(),
        *(label + 10 for label in one.test.labels.tolist()),
    ]
    assert part_of(data, 1).preprocess == data.preprocess
    with pytest.raises(UsageError, match="no plain classification"):
        joined([one, load_data("sine")])
