"""Losses against the labels, and the type of every loss that a training takes."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from edgecompress.train.batches import Batch

Loss = Callable[[Tensor, Batch], Tensor]
"""(logits (B, K), batch) -> mean loss over the batch, a scalar."""


def label_loss(logits: Tensor, batch: Batch) -> Tensor:
    """The task's loss, a scalar, of `logits` (B, K) against the labels: the mean cross-entropy for
    a classification.
    """
    return batch.task.loss(logits, batch.labels)


def smoothed(smoothing: float) -> Loss:
    """The task's loss with label smoothing (Szegedy et al. 2016, section 7): the target is
    (1 - smoothing) one_hot(y) + smoothing / K. A regression ignores it.
    """
    return lambda logits, batch: batch.task.loss(logits, batch.labels, smoothing)
