"""Losses that learn from a teacher.

`hinton` (Hinton, Vinyals and Dean 2015): alpha T^2 KL(softmax(t / T) || softmax(s / T)) + (1 - alpha) CE(s, y).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgecompress.data import DataSet
from edgecompress.train.fit import Batch, Loss

TeacherLogits = Callable[[Batch], Tensor]
"""Logits (B, K) of the teacher for a batch."""


@torch.no_grad()
def teacher_logits(teacher: nn.Module, data: DataSet, device: torch.device, size: int = 128) -> TeacherLogits:
    """The teacher's logits for training batches of `data`: computed once, where no augmentation changes the images.

    The teacher is used in eval mode without gradients and is not changed.
    """
    teacher = teacher.to(device).eval()

    reference = weakref.ref(teacher)

    @torch.no_grad()
    def live(batch: Batch) -> Tensor:
        alive = reference()
        if alive is None:
            raise RuntimeError("the teacher is gone: keep it while its logits are used")
        return alive(batch.images)  # type: ignore[no-any-return]

    augmentation = data.augmentation
    if augmentation.flip or augmentation.shift or augmentation.cutout:
        return live
    pixels = data.train.pixels
    parts = [teacher(data.normalised(part.to(device))) for part in pixels.split(size)]
    table = torch.cat(parts)
    return lambda batch: table[batch.ids.to(table.device)]


def kl_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), mean over the batch; logits (B, K)."""
    log_student = F.log_softmax(student / temperature, 1)
    log_teacher = F.log_softmax(teacher / temperature, 1)
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True) * temperature**2


def hinton(logits_of: TeacherLogits, temperature: float = 4.0, alpha: float = 0.7) -> Loss:
    """Hinton's loss against the teacher behind `logits_of`."""

    def loss(logits: Tensor, batch: Batch) -> Tensor:
        soft = kl_divergence(logits, logits_of(batch), temperature)
        return alpha * soft + (1 - alpha) * F.cross_entropy(logits, batch.labels)

    return loss
