"""Losses and scores of classification, regression, and several heads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from edgecompress.data.task import Heads, Regression, Task


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
    expected = (
        F.cross_entropy(outputs[first, :3], labels[first], reduction="sum")
        + F.cross_entropy(outputs[~first, 3:], labels[~first] - 3, reduction="sum")
    ) / 30
    torch.testing.assert_close(task.loss(outputs, labels), expected)
    disturbed = outputs.clone()
    disturbed[first, 3:] += 100
    torch.testing.assert_close(task.loss(disturbed, labels), expected)
    assert task.score(disturbed, labels) == task.score(outputs, labels)


def test_r2_is_the_share_of_explained_variance() -> None:
    labels = torch.tensor(np.random.default_rng(0).normal(size=(500, 2)))
    assert Regression().score(labels, labels) == 1
    assert Regression().score(labels.mean(0).expand_as(labels), labels) == pytest.approx(
        0, abs=1e-12
    )
    assert Regression().score(-labels, labels) < 0
