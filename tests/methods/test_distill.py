"""Losses on logits: their laws, against formulas written out by hand."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgecompress.methods.distill import (
    NCKD_WEIGHT,
    decoupled,
    kl_divergence,
    learning_from,
    mutual,
    soft_loss,
    softmax_mse,
)
from edgecompress.methods.sources import Peer, TopK
from edgecompress.methods.teacher import largest
from edgecompress.train.batches import Batch


def logits(seed: int, rows: int = 4, classes: int = 6) -> torch.Tensor:
    return 3 * torch.randn(
        rows, classes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )


def top(teacher: torch.Tensor, k: int, temperature: float) -> TopK:
    table = largest(teacher, k, temperature)
    return TopK(table["values"], table["indices"].long(), table["rest"])


@given(st.integers(0, 10_000), st.floats(0.5, 8.0))
def test_all_classes_kept_is_the_dense_loss(seed: int, temperature: float) -> None:
    student, teacher = logits(seed), logits(seed + 1)
    dense = kl_divergence(student, teacher, temperature)
    for k in (6, 60):
        torch.testing.assert_close(
            kl_divergence(student, top(teacher, k, temperature), temperature),
            dense,
            atol=1e-9,
            rtol=0,
        )
    single = kl_divergence(student.float(), top(teacher.float(), 6, temperature), temperature)
    torch.testing.assert_close(single.double(), dense, atol=1e-5, rtol=1e-5)


@given(st.integers(0, 10_000), st.floats(0.5, 8.0))
def test_keeping_fewer_logits_never_raises_the_divergence(seed: int, temperature: float) -> None:
    """Coarser distributions are closer (data processing), and a student equal to its teacher is at
    0 for every k.
    """
    student, teacher = logits(seed), logits(seed + 1)
    values = [
        float(kl_divergence(student, top(teacher, k, temperature), temperature))
        for k in range(1, 7)
    ]
    assert all(a <= b + 1e-9 for a, b in itertools.pairwise(values))
    assert values[-2] == pytest.approx(values[-1], abs=1e-9), "leaving one class out loses nothing"
    for k in range(1, 7):
        assert float(
            kl_divergence(teacher, top(teacher, k, temperature), temperature)
        ) == pytest.approx(0, abs=1e-9)


def test_kept_logits_give_a_finite_gradient_to_every_class() -> None:
    student = logits(0).requires_grad_()
    kl_divergence(student, top(logits(1), 2, 4.0), 4.0).backward()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
    assert (student.grad != 0).all()


def test_softmax_mse_is_the_listing_of_the_source() -> None:
    student, teacher = logits(0), logits(1)
    pairs = zip(
        torch.softmax(student / 5, 1).flatten().tolist(),
        torch.softmax(teacher / 5, 1).flatten().tolist(),
        strict=True,
    )
    by_hand = sum((a - b) ** 2 for a, b in pairs) / student.numel()
    assert float(softmax_mse(student, teacher, 5.0)) == pytest.approx(by_hand)
    assert float(
        soft_loss("softmax-mse")(student, teacher, torch.zeros(4).long())
    ) == pytest.approx(by_hand), "T = 5 by default"


@given(st.integers(0, 10_000), st.floats(0.5, 8.0))
def test_kl_is_tckd_plus_the_rest_times_nckd(seed: int, temperature: float) -> None:
    """Zhao et al. 2022, equation 5, sample by sample; and DKD is their weighted sum."""
    labels = torch.tensor([0, 5, 2, 2])
    student, teacher = logits(seed), logits(seed + 1)
    for row in range(4):
        s, t = (torch.softmax(x[row] / temperature, 0) for x in (student, teacher))
        y = int(labels[row])
        others = [i for i in range(6) if i != y]
        tckd = t[y] * torch.log(t[y] / s[y]) + (1 - t[y]) * torch.log((1 - t[y]) / (1 - s[y]))
        nckd = sum(
            t[i] / (1 - t[y]) * torch.log((t[i] / (1 - t[y])) / (s[i] / (1 - s[y]))) for i in others
        )
        one = slice(row, row + 1)
        kl = kl_divergence(student[one], teacher[one], temperature)
        torch.testing.assert_close(
            kl, temperature**2 * (tckd + (1 - t[y]) * nckd), atol=1e-8, rtol=1e-8
        )
        dkd = decoupled(student[one], teacher[one], labels[one], temperature)
        torch.testing.assert_close(
            dkd, temperature**2 * (tckd + NCKD_WEIGHT * nckd), atol=1e-8, rtol=1e-8
        )


def test_kl_of_equal_logits_is_zero_and_its_scale_is_t_squared() -> None:
    student, teacher = torch.randn(4, 5), torch.randn(4, 5)
    assert abs(float(kl_divergence(student, student, 4.0))) < 1e-6
    by_hand = (
        torch.softmax(teacher / 3, 1)
        * (torch.log_softmax(teacher / 3, 1) - torch.log_softmax(student / 3, 1))
    ).sum(1).mean() * 9
    torch.testing.assert_close(kl_divergence(student, teacher, 3.0), by_hand)


@pytest.mark.parametrize("name", ["softmax-mse", "dkd"])
def test_other_losses_need_all_logits(name: str) -> None:
    with pytest.raises(TypeError, match="only the loss kl"):
        soft_loss(name)(logits(0), top(logits(1), 2, 4.0), torch.zeros(4).long())


def test_labels_and_teacher_are_mixed_by_alpha() -> None:
    student, teacher, labels = logits(0), logits(1), torch.tensor([0, 1, 2, 3])
    batch = Batch(torch.arange(4), torch.zeros(4, 1), labels, logits={"peer": teacher})
    hard, soft = (
        torch.nn.functional.cross_entropy(student, labels),
        kl_divergence(student, teacher, 2.0),
    )
    torch.testing.assert_close(
        learning_from(Peer("peer"), "kl", 2.0, 0.25)(student, batch), 0.25 * soft + 0.75 * hard
    )


@given(st.integers(0, 10_000), st.integers(1, 4))
def test_mutual_is_the_formula_written_by_hand(seed: int, peers: int) -> None:
    """Zhang et al. 2018: -log p(y) + mean over the peers of sum q log (q / p), sample by sample."""
    own, labels = logits(seed), torch.tensor([0, 5, 2, 2])
    others = {f"peer {number}": logits(seed + 1 + number) for number in range(peers)}
    batch = Batch(torch.arange(4), torch.zeros(4, 1), labels, logits=others)
    by_hand = 0.0
    for row in range(4):
        p = torch.softmax(own[row], 0).tolist()
        by_hand -= math.log(p[labels[row]]) / 4
        for other in others.values():
            q = torch.softmax(other[row], 0).tolist()
            divergence = sum(b * math.log(b / a) for a, b in zip(p, q, strict=True))
            by_hand += divergence / (4 * peers)
    loss = mutual([Peer(name) for name in others])
    assert float(loss(own, batch)) == pytest.approx(by_hand, rel=1e-9)
