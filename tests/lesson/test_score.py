"""The score of a network at the end of a lesson."""

from __future__ import annotations

import torch
from torch import nn

from edgecompress.data import load_data
from edgecompress.lesson.score import final_score
from edgecompress.proportions import interval


def test_an_accuracy_comes_with_its_interval() -> None:
    data = load_data("digits")
    zero = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))
    nn.init.zeros_(zero[1].weight)
    zero[1].bias.data = torch.eye(10)[3]  # always says 3
    right = int((data.test.labels == 3).sum())
    score = final_score(zero, data)
    assert (score["n"], score["accuracy"]) == (359, right / 359)
    assert score["ci95"] == [*interval(right, 359)]


def test_without_data_there_is_no_score() -> None:
    assert final_score(nn.Identity(), None) == {
        "accuracy": None,
        "loss": None,
        "n": 0,
        "ci95": None,
    }
