"""What the outputs of a network are compared with: the loss against the labels, and the score
(higher is better).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

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

    def targets(self, images: Tensor, labels: Tensor) -> Tensor:
        """What outputs for `images` (N, C, h, w), as a network reads them, are compared with: the
        `labels` (N, ...) of the data.
        """
        return labels

    def loss(self, outputs: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
        """Mean cross-entropy, a scalar, of `outputs` (N, K) against `labels` (N,).

        With label smoothing (Szegedy et al. 2016) the target is 1 - `smoothing` for the label plus
        `smoothing` / K for each class.
        """
        return F.cross_entropy(outputs, labels, label_smoothing=smoothing)

    def correct(self, outputs: Tensor, labels: Tensor) -> Tensor | None:
        """Which samples are right, bool (N,): those whose largest logit of `outputs` (N, K) is that
        of the label (N,). None for a task without classes.
        """
        return outputs.argmax(1) == labels

    def score(self, outputs: Tensor, labels: Tensor) -> float:
        """Accuracy 0..1 of `outputs` (N, K) against `labels` (N,): the share of samples that are
        `correct`.
        """
        right = self.correct(outputs, labels)
        return 0.0 if right is None else float(right.double().mean())

    def metadata(self) -> dict[str, object]:
        """The entries in the metadata of an exported file, as JSON values; none for plain
        classification.
        """
        return {}


@dataclass(frozen=True)
class Regression(Task):
    """Regression: outputs and labels (N, K) float32. The score is R², the share of the labels'
    variance that the outputs explain, at most 1.
    """

    @property
    def metric(self) -> str:
        """Name of the score."""
        return "r2"

    def loss(self, outputs: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
        """Mean squared error, a scalar, of `outputs` and `labels` (N, K). `smoothing` has no
        effect.
        """
        return F.mse_loss(outputs, labels)

    def correct(self, outputs: Tensor, labels: Tensor) -> Tensor | None:
        """None for any `outputs` and `labels` (N, K): a regression has no classes."""
        return None

    def score(self, outputs: Tensor, labels: Tensor) -> float:
        """R² of `outputs` (N, K): 1 - mean squared error / variance of `labels` (N, K)."""
        targets = labels.double()
        unexplained = (outputs.double() - targets).square().sum()
        return float(1 - unexplained / (targets - targets.mean(0)).square().sum())

    def metadata(self) -> dict[str, object]:
        """As JSON values."""
        return {"task": "regression"}


@dataclass(frozen=True)
class Reconstruction(Regression):
    """An autoencoder: outputs (N, C, h, w) are compared with the images that the network read. The
    score is R² over all values, each against its mean over the images.
    """

    def targets(self, images: Tensor, labels: Tensor) -> Tensor:
        """The `images` (N, C, h, w), whatever the `labels` (N, ...) are."""
        return images

    def metadata(self) -> dict[str, object]:
        """As JSON values."""
        return {"task": "reconstruction"}


@dataclass(frozen=True)
class Heads(Task):
    """Several classifications side by side: outputs (N, sum of `sizes`). A sample's label lies in
    the range of one head, and only that head's logits count for it.
    """

    sizes: tuple[int, ...]

    def _own(self, outputs: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """For each head the logits (n, size) of its own n samples, and their labels (n,) within
        it.
        """
        for end, size in zip(accumulate(self.sizes), self.sizes, strict=True):
            rows = (labels >= end - size) & (labels < end)
            if bool(rows.any()):
                yield outputs[rows, end - size : end], labels[rows] - (end - size)

    def loss(self, outputs: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
        """Mean cross-entropy, a scalar, of `outputs` (N, sum of `sizes`) against `labels` (N,),
        each sample in its own head.
        """
        parts = [
            F.cross_entropy(logits, own, label_smoothing=smoothing, reduction="sum")
            for logits, own in self._own(outputs, labels)
        ]
        return torch.stack(parts).sum() / len(labels)

    def correct(self, outputs: Tensor, labels: Tensor) -> Tensor | None:
        """Which samples of `outputs` (N, sum of `sizes`) are right, each in its own head, bool
        (N,), by `labels` (N,).
        """
        right = torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
        for end, size in zip(accumulate(self.sizes), self.sizes, strict=True):
            rows = (labels >= end - size) & (labels < end)
            predicted = outputs[rows, end - size : end].argmax(1) + end - size
            right[rows] = predicted == labels[rows]
        return right

    def metadata(self) -> dict[str, object]:
        """As JSON values."""
        return {"heads": list(self.sizes)}
