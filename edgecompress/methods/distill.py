"""Losses that learn from a teacher's logits. Shapes: student and teacher logits (B, K), labels
(B,).

kl            T^2 KL(softmax(t / T) || softmax(s / T))                                      Hinton,
              Vinyals and Dean 2015
softmax-mse   mean of (softmax(s / T) - softmax(t / T))^2 over samples and classes          García
              González 2022, T = 5
dkd           T^2 (TCKD + 8 NCKD): the teacher's trust in the right class, and how it ranks the
              others, apart      Zhao et al. 2022

Each is mixed with the labels: alpha * soft + (1 - alpha) * cross-entropy. A regression mixes the
mean square errors to teacher and labels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from edgecompress.train.batches import Batch
from edgecompress.train.fit import Loss


@dataclass(frozen=True)
class TopK:
    """The k largest logits of a teacher: `values` and their classes `indices` (B, k), and `rest`
    (B,), log sum exp(t / T) of all others.

    `rest` is -inf where k is all classes.
    """

    values: Tensor
    indices: Tensor
    rest: Tensor


Target = Tensor | TopK
Targets = Callable[[Batch], Target]
"""What the teacher says of a batch."""
SoftLoss = Callable[[Tensor, Target, Tensor], Tensor]
"""(student logits, the teacher's, labels) -> mean loss, a scalar."""

DEFAULTS = {"kl": (4.0, 0.7), "softmax-mse": (5.0, 1.0), "dkd": (4.0, 0.5)}
"""Temperature and alpha of each loss where nobody says."""
NCKD_WEIGHT = 8.0
"""Weight of the non-target part of `dkd`, the paper's choice for CIFAR-100."""


def kl_divergence(student: Tensor, teacher: Target, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), mean over the batch.

    Of a `TopK`, the classes that it leaves out count as one class, for teacher and student alike:
    the divergence of the coarser distributions, which is at most the dense one and equals it when k
    is all classes (or all but one).
    """
    if isinstance(teacher, TopK):
        log_teacher, log_student = _coarse(student, teacher, temperature)
    else:
        log_teacher, log_student = (
            F.log_softmax(teacher / temperature, 1),
            F.log_softmax(student / temperature, 1),
        )
    return (
        F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True) * temperature**2
    )


def _coarse(student: Tensor, teacher: TopK, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities (B, k + 1) of teacher and student over the k classes and all others
    together.
    """
    scaled = student / temperature
    kept = torch.zeros_like(scaled, dtype=torch.bool).scatter_(1, teacher.indices, True)
    log_teacher = torch.cat([teacher.values / temperature, teacher.rest[:, None]], 1).log_softmax(1)
    mine = scaled.gather(1, teacher.indices)
    if bool(kept.all()):
        return log_teacher[:, :-1], mine.log_softmax(1)
    others = scaled.masked_fill(kept, float("-inf")).logsumexp(1, keepdim=True)
    return log_teacher, torch.cat([mine, others], 1).log_softmax(1)


def softmax_mse(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Mean square difference of the two softmaxes at T, over samples and classes."""
    return F.mse_loss(
        torch.softmax(student / temperature, 1), torch.softmax(teacher / temperature, 1)
    )


def decoupled(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """T^2 (TCKD + `NCKD_WEIGHT` NCKD) (Zhao et al. 2022, equation 7), mean over the batch."""
    log_s, log_t = (F.log_softmax(logits / temperature, 1) for logits in (student, teacher))
    right = F.one_hot(labels, student.shape[1]).bool()

    def binary(log_p: Tensor) -> Tensor:
        """Log-probabilities (B, 2): the right class, all others."""
        return torch.stack([log_p[right], log_p.masked_fill(right, float("-inf")).logsumexp(1)], 1)

    def others(logits: Tensor) -> Tensor:
        """Log-probabilities (B, K - 1) among the other classes."""
        return F.log_softmax(logits[~right].reshape(len(logits), -1) / temperature, 1)

    target = F.kl_div(binary(log_s), binary(log_t), reduction="batchmean", log_target=True)
    rest = F.kl_div(others(student), others(teacher), reduction="batchmean", log_target=True)
    return (target + NCKD_WEIGHT * rest) * temperature**2


def soft_loss(name: str, temperature: float | None = None) -> SoftLoss:
    """The loss called `name` (a key of `DEFAULTS`) at `temperature`. Only `kl` takes a `TopK`."""
    at = DEFAULTS[name][0] if temperature is None else temperature
    if name == "softmax-mse":
        return lambda student, teacher, labels: softmax_mse(student, _dense(teacher), at)
    if name == "dkd":
        return lambda student, teacher, labels: decoupled(student, _dense(teacher), labels, at)
    return lambda student, teacher, labels: kl_divergence(student, teacher, at)


def _dense(teacher: Target) -> Tensor:
    if isinstance(teacher, TopK):
        raise TypeError("only the loss kl takes the k largest logits")
    return teacher


def learning_from(
    targets: Targets, name: str = "kl", temperature: float | None = None, alpha: float | None = None
) -> Loss:
    """alpha * soft + (1 - alpha) * cross-entropy, where `targets(batch)` gives what the teacher
    says.
    """
    soft, share = soft_loss(name, temperature), DEFAULTS[name][1] if alpha is None else alpha

    def loss(logits: Tensor, batch: Batch) -> Tensor:
        target = targets(batch)
        if batch.task.metric == "accuracy":
            value = share * soft(logits, target, batch.labels)
        else:  # a regression: the teacher's outputs are its soft labels
            value = share * batch.task.loss(logits, _dense(target))
        return value if share == 1 else value + (1 - share) * batch.task.loss(logits, batch.labels)

    return loss


def peer(name: str) -> Targets:
    """As targets, the logits of the network `name` that trains on the same batch (online
    distillation).
    """
    return lambda batch: batch.logits[name]


def mutual(name: str) -> Loss:
    """Cross-entropy + KL(softmax(other) || softmax(own)) at T = 1: deep mutual learning with the
    network `name` (Zhang et al. 2018).
    """

    def loss(logits: Tensor, batch: Batch) -> Tensor:
        return F.cross_entropy(logits, batch.labels) + kl_divergence(
            logits, batch.logits[name], 1.0
        )

    return loss
