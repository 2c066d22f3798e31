"""What the outputs of a network are for: the loss against the labels, and the score that says how
good they are (higher is better).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Task:
    """Classification: outputs (N, K) are logits, labels (N,) int64 the classes; the score is the
    accuracy, 0..1.
    """

    @property
    def metric(self) -> str:
        """Name of the score."""
        return "accuracy"

    def loss(self, outputs: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
        """Mean cross-entropy against labels that keep 1 - `smoothing` and share the rest (Szegedy
        et al. 2016), a scalar.
        """
        return F.cross_entropy(outputs, labels, label_smoothing=smoothing)

    def score(self, outputs: Tensor, labels: Tensor) -> float:
        """Share of samples whose largest logit is at the label."""
        return float((outputs.argmax(1) == labels).double().mean())

    def metadata(self) -> dict[str, Any]:
        """What a file says of it, as JSON values; nothing for plain classification."""
        return {}


@dataclass(frozen=True)
class Regression(Task):
    """Outputs and labels (N, K) float32. The score is R², the share of the labels' variance that
    the outputs explain, at most 1.
    """

    @property
    def metric(self) -> str:
        """Name of the score."""
        return "r2"

    def loss(self, outputs: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
        """Mean square error, a scalar; labels are not smoothed."""
        return F.mse_loss(outputs, labels)

    def score(self, outputs: Tensor, labels: Tensor) -> float:
        """1 - mean square error / variance of the labels."""
        wanted = labels.double()
        unexplained = (outputs.double() - wanted).square().sum()
        return float(1 - unexplained / (wanted - wanted.mean(0)).square().sum())

    def metadata(self) -> dict[str, Any]:
        """As JSON values."""
        return {"task": "regression"}


@dataclass(frozen=True)
class Heads(Task):
    """Several classifications side by side: outputs (N, sum of `sizes`), a sample's label in the
    range of one head, which alone counts.
    """

    sizes: tuple[int, ...]

    def _own(self, outputs: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """For each head its logits (n, size) of the samples that are its own, and their labels
        within it.
        """
        for end, size in zip(accumulate(self.sizes), self.sizes, strict=True):
            rows = (labels >= end - size) & (labels < end)
            if bool(rows.any()):
                yield outputs[rows, end - size : end], labels[rows] - (end - size)

    def loss(self, outputs: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
        """Mean cross-entropy of each sample in its own head, a scalar."""
        parts = [
            F.cross_entropy(logits, own, label_smoothing=smoothing, reduction="sum")
            for logits, own in self._own(outputs, labels)
        ]
        return torch.stack(parts).sum() / len(labels)

    def score(self, outputs: Tensor, labels: Tensor) -> float:
        """Share of samples that their own head gets right."""
        return sum(
            float((logits.argmax(1) == own).double().sum())
            for logits, own in self._own(outputs, labels)
        ) / len(labels)

    def metadata(self) -> dict[str, Any]:
        """As JSON values."""
        return {"heads": list(self.sizes)}
