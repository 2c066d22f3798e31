"""Losses on the logits of other networks, which a `sources.LogitSource` has. Shapes: student and
teacher logits (B, K), labels (B,).

kl            T^2 KL(softmax(t / T) || softmax(s / T))
              Hinton, Vinyals and Dean 2015
softmax-mse   mean of (softmax(s / T) - softmax(t / T))^2 over samples and classes
              García González 2022, T = 5
dkd           T^2 (TCKD + 8 NCKD): the teacher's confidence in the target class, and its ranking of
              the other classes, decoupled
              Zhao et al. 2022

Each is mixed with the loss against the labels: alpha * soft + (1 - alpha) * cross-entropy. A
regression mixes the mean square errors to teacher and labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from edgecompress.methods.sources import LogitSource, Target, TopK
from edgecompress.train.batches import Batch
from edgecompress.train.losses import Loss

SoftLoss = Callable[[Tensor, Target, Tensor], Tensor]
"""(student logits (B, K), the teacher's, labels (B,)) -> mean loss, a scalar."""

DEFAULTS = {"kl": (4.0, 0.7), "softmax-mse": (5.0, 1.0), "dkd": (4.0, 0.5)}
"""Default temperature and alpha of each loss."""
NCKD_WEIGHT = 8.0
"""Weight of the non-target part of `dkd`, the paper's choice for CIFAR-100."""


def kl_divergence(student: Tensor, teacher: Target, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), mean over the batch, a scalar, of
    `student` logits (B, K).

    Of a `TopK`, the classes left out count as one class, for teacher and student alike: the
    divergence of the coarser distributions, which is at most the dense one and equals it when k is
    all classes (or all but one).
    """
    if isinstance(teacher, TopK):
        log_teacher, log_student = _coarse(student, teacher, temperature)
    else:
        log_teacher = F.log_softmax(teacher / temperature, 1)
        log_student = F.log_softmax(student / temperature, 1)
    divergence = F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    return divergence * temperature**2


def _coarse(student: Tensor, teacher: TopK, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities (B, k + 1) of teacher and student over the k classes and all others
    together; (B, k) where k is all classes.
    """
    scaled = student / temperature  # (B, K)
    kept = torch.zeros_like(scaled, dtype=torch.bool).scatter_(1, teacher.indices, True)
    own = scaled.gather(1, teacher.indices)  # (B, k)
    log_teacher = torch.cat([teacher.values / temperature, teacher.rest[:, None]], 1).log_softmax(1)
    if bool(kept.all()):
        return log_teacher[:, :-1], own.log_softmax(1)
    rest = scaled.masked_fill(kept, float("-inf")).logsumexp(1, keepdim=True)  # (B, 1)
    return log_teacher, torch.cat([own, rest], 1).log_softmax(1)


def softmax_mse(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Mean square difference of softmax(student / T) and softmax(teacher / T), both from logits
    (B, K), over samples and classes, a scalar (García González 2022).
    """
    return F.mse_loss(
        torch.softmax(student / temperature, 1), torch.softmax(teacher / temperature, 1)
    )


def decoupled(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """T^2 (TCKD + `NCKD_WEIGHT` NCKD) (Zhao et al. 2022, equation 7), mean over the batch, a
    scalar, of logits (B, K) and `labels` (B,).
    """
    target = F.one_hot(labels, student.shape[1]).bool()  # (B, K)

    def binary(logits: Tensor) -> Tensor:
        """Log-probabilities (B, 2): the target class, all other classes."""
        log_p = F.log_softmax(logits / temperature, 1)
        others = log_p.masked_fill(target, float("-inf")).logsumexp(1)
        return torch.stack([log_p[target], others], 1)

    def non_target(logits: Tensor) -> Tensor:
        """Log-probabilities (B, K - 1) among the other classes."""
        return F.log_softmax(logits[~target].reshape(len(logits), -1) / temperature, 1)

    def divergence(part: Callable[[Tensor], Tensor]) -> Tensor:
        return F.kl_div(part(student), part(teacher), reduction="batchmean", log_target=True)

    return (divergence(binary) + NCKD_WEIGHT * divergence(non_target)) * temperature**2


def soft_loss(name: str, temperature: float | None = None) -> SoftLoss:
    """The loss `name` (a key of `DEFAULTS`) at `temperature`. Only `kl` accepts a `TopK`; the
    others raise `TypeError`.
    """
    at = DEFAULTS[name][0] if temperature is None else temperature
    if name == "softmax-mse":
        return lambda student, teacher, labels: softmax_mse(student, _dense(teacher), at)
    if name == "dkd":
        return lambda student, teacher, labels: decoupled(student, _dense(teacher), labels, at)
    return lambda student, teacher, labels: kl_divergence(student, teacher, at)


def _dense(teacher: Target) -> Tensor:
    if isinstance(teacher, TopK):
        k = teacher.values.shape[1]
        raise TypeError(f"got the {k} largest logits, but only the loss kl accepts them: use all")
    return teacher


def learning_from(
    source: LogitSource,
    name: str = "kl",
    temperature: float | None = None,
    alpha: float | None = None,
) -> Loss:
    """alpha * soft + (1 - alpha) * cross-entropy, where `source` has the teacher's logits (Hinton,
    Vinyals and Dean 2015). `name`, `temperature` and `alpha` as in `DEFAULTS`.
    """
    soft = soft_loss(name, temperature)
    share = DEFAULTS[name][1] if alpha is None else alpha

    def loss(logits: Tensor, batch: Batch) -> Tensor:
        target = source.logits(batch)
        if batch.task.metric == "accuracy":
            value = share * soft(logits, target, batch.labels)
        else:  # a regression: the teacher's outputs are its soft labels
            value = share * batch.task.loss(logits, _dense(target))
        return value if share == 1 else value + (1 - share) * batch.task.loss(logits, batch.labels)

    return loss


def mutual(sources: Sequence[LogitSource]) -> Loss:
    """Deep mutual learning: cross-entropy + the mean over the `sources` of
    KL(softmax(source) || softmax(own)) at T = 1 (Zhang et al. 2018).
    """

    def loss(logits: Tensor, batch: Batch) -> Tensor:
        hard = F.cross_entropy(logits, batch.labels)
        soft = [kl_divergence(logits, source.logits(batch), 1.0) for source in sources]
        return hard + torch.stack(soft).mean()

    return loss
