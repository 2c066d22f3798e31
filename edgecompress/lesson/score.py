"""The score of a network at the end of a lesson."""

from __future__ import annotations

from typing import TypedDict

from torch import nn

from edgecompress.data import DataSet
from edgecompress.lesson.settings import CPU
from edgecompress.proportions import interval
from edgecompress.train.batches import evaluate


class FinalScore(TypedDict):
    """Accuracy (0..1) on a test split of `n` samples with its 95 % interval (Wilson), and loss;
    None without data.
    """

    accuracy: float | None
    loss: float | None
    n: int
    ci95: list[float] | None


def final_score(model: nn.Module, data: DataSet | None) -> FinalScore:
    """The score of `model` on the test split of `data`."""
    if data is None:
        return {"accuracy": None, "loss": None, "n": 0, "ci95": None}
    loss, accuracy = evaluate(model, data, data.test, CPU)
    count = len(data.test)
    low, high = interval(round(accuracy * count), count)
    return {"accuracy": accuracy, "loss": loss, "n": count, "ci95": [low, high]}
