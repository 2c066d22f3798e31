"""Figures of accuracy, with what they are worth: the number of samples, 95 % intervals, paired
differences, and what a reader should know of a network that has learned little.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgecompress import proportions
from edgecompress.data import DataSet, Images
from edgecompress.data.task import Task
from edgecompress.proportions import Paired
from edgecompress.run.schema import Score

SHOWN_CLASSES = 5
"""So many classes are named in a line."""


def score_of(task: Task, outputs: Tensor, labels: Tensor) -> Score:
    """The score of `outputs` (N, K) against `labels` (N,) or (N, K): `accuracy` 0..1 with `n` and
    its 95 % interval (Wilson); of a regression R² under that name, and `loss`, the mean square
    error.
    """
    score: Score = {"accuracy": task.score(outputs, labels), "n": len(labels)}
    right = task.correct(outputs, labels)
    if right is None:
        score["loss"] = float(task.loss(outputs, labels))
    else:
        score["ci95"] = list(proportions.interval(int(right.sum()), len(labels)))
    return score


def on_validation(data: DataSet, value: float) -> str:
    """A score on the validation split in words: `97.49% (95 % 95.2 to 98.7, n 359)`; of a
    regression its R², `r2 0.9749`.
    """
    if data.task.metric != "accuracy":
        return f"{data.task.metric} {value:.4f}"
    return proportions.shown(value, len(data.validation))


def paired(task: Task, first: Tensor, second: Tensor, labels: Tensor) -> Paired | None:
    """How two networks differ on the same samples, from their outputs (N, K) and the labels (N,);
    None for a regression.
    """
    before, after = task.correct(first, labels), task.correct(second, labels)
    if before is None or after is None:
        return None
    return Paired.of(before.tolist(), after.tolist())


def weakness(data: DataSet, split: Images, outputs: Tensor) -> str | None:
    """What is wrong with a classifier whose outputs (N, K) for a split are these: no better than
    chance, or a class that it never predicts. None where nothing is.
    """
    task, labels = data.task, data.targets(split)
    right = task.correct(outputs, labels)
    if right is None or data.parts or len(data.classes) < 2:
        return None
    faults = []
    counts = torch.bincount(labels, minlength=len(data.classes))
    chance = float(counts.max()) / len(labels)
    low, _ = proportions.interval(int(right.sum()), len(labels))
    if low <= chance:
        accuracy = float(right.double().mean())
        faults.append(
            f"{accuracy:.2%} on {len(labels)} images is no better than always "
            f"'{data.classes[int(counts.argmax())]}' ({chance:.2%})"
        )
    predicted = torch.bincount(outputs.argmax(1).cpu(), minlength=len(data.classes))
    absent = [data.classes[k] for k in torch.nonzero((predicted == 0) & (counts > 0)).ravel()]
    if absent:
        more = f" and {len(absent) - SHOWN_CLASSES} more" if len(absent) > SHOWN_CLASSES else ""
        names = ", ".join(f"'{name}'" for name in absent[:SHOWN_CLASSES])
        faults.append(f"never predicts {names}{more}")
    return "; ".join(faults) or None
