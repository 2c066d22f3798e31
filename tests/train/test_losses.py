"""Losses against the labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from edgecompress.data.task import Regression
from edgecompress.train.batches import Batch
from edgecompress.train.losses import label_loss, smoothed

LOGITS = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


def test_a_classification_has_cross_entropy() -> None:
    labels = torch.tensor([0, 2, 1, 1])
    batch = Batch(torch.arange(4), LOGITS, labels)
    torch.testing.assert_close(label_loss(LOGITS, batch), F.cross_entropy(LOGITS, labels))
    torch.testing.assert_close(smoothed(0.0)(LOGITS, batch), F.cross_entropy(LOGITS, labels))


def test_smoothing_mixes_the_target_with_the_uniform_distribution() -> None:
    labels = torch.tensor([0, 2, 1, 1])
    target = 0.7 * F.one_hot(labels, 3) + 0.3 / 3
    expected = -(target * LOGITS.log_softmax(1)).sum(1).mean()
    batch = Batch(torch.arange(4), LOGITS, labels)
    torch.testing.assert_close(smoothed(0.3)(LOGITS, batch), expected)


def test_a_regression_has_the_square_error_smoothed_or_not() -> None:
    targets = torch.zeros(4, 3)
    batch = Batch(torch.arange(4), LOGITS, targets, task=Regression())
    for loss in (label_loss, smoothed(0.3)):
        torch.testing.assert_close(loss(LOGITS, batch), LOGITS.square().mean())
