"""The training loop, for one network and for several on the same batches."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from edgecompress.core import trace
from edgecompress.data import load_data
from edgecompress.errors import EdgecompressError
from edgecompress.methods.distill import learning_from, mutual
from edgecompress.methods.sources import Peer
from edgecompress.methods.teacher import FixedTeacher
from edgecompress.models import ModelSource, build
from edgecompress.train.batches import Batch, evaluate
from edgecompress.train.fit import Hooks, Learner, fit, fit_together, label_loss
from edgecompress.train.settings import FitSettings
from tests.networks import narrow

CPU = torch.device("cpu")
SETTINGS = FitSettings(epochs=2, batch_size=128, learning_rate=2e-3)
CONSTANT = FitSettings(epochs=6, batch_size=512, learning_rate=0.0, weight_decay=0.0)
"""Nothing is learned, so no epoch is better than the first."""


def network(seed: int, name: str = "lenet5") -> torch.nn.Module:
    torch.manual_seed(seed)
    return build(ModelSource(name, 10, (3, 32, 32)))


def test_training_learns_restores_the_best_epoch_and_repeats_exactly() -> None:
    data = load_data("digits")
    settings = FitSettings(epochs=3, learning_rate=2e-3)
    results = [fit(network(0), data, label_loss, settings, seed=1, device=CPU) for _ in range(2)]
    first, second = results
    assert first.best.validation_accuracy > 0.85
    assert [r.train_loss for r in first.history] == [r.train_loss for r in second.history]
    state, repeated = (result.model.state_dict() for result in results)
    assert all(torch.equal(state[k], repeated[k]) for k in state)
    rebuilt = build(ModelSource("lenet5", 10, (3, 32, 32)))
    rebuilt.load_state_dict(state)
    assert evaluate(rebuilt, data, data.validation, CPU)[1] == max(
        r.validation_accuracy for r in first.history
    )


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step() -> None:
    data = load_data("digits")
    calls = iter([1.0, float("nan")])
    with pytest.raises(EdgecompressError, match="epoch 1, step 2"):
        fit(
            network(0),
            data,
            lambda logits, batch: logits.mean() * next(calls),
            FitSettings(epochs=1),
            seed=0,
            device=CPU,
        )


def test_training_continues_after_cuts_and_chooses_an_eligible_epoch() -> None:
    torch.manual_seed(0)
    data, model = load_data("digits"), narrow("vgg16_bn", 0).float()
    model.classifier[-1] = torch.nn.Linear(10, 10)
    full = sum(p.numel() for p in model.parameters())

    def cut(network: torch.nn.Module, epoch: int) -> dict[object, torch.Tensor] | None:
        groups = trace(network, torch.zeros(1, 3, 32, 32)).groups
        return (
            {g: torch.arange(g.size) < max(2, g.size - 1) for g in groups}
            if epoch in (1, 2)
            else None
        )

    result = fit(
        model,
        data,
        label_loss,
        FitSettings(4, batch_size=64, learning_rate=2e-3),
        seed=0,
        device=CPU,
        hooks=Hooks(
            cut=cut, eligible=lambda m: sum(p.numel() for p in m.parameters()) < 0.7 * full
        ),
    )
    assert [row.cut > 0 for row in result.history] == [True, True, False, False]
    assert [row.params for row in result.history] == sorted(
        (row.params for row in result.history), reverse=True
    )
    assert result.eligible and result.best_epoch >= 2
    assert sum(p.numel() for p in result.model.parameters()) < 0.7 * full
    after = sum(p.numel() for p in model.parameters())
    assert after == full, "the network that was passed in keeps its shape"


def test_without_an_eligible_epoch_the_result_is_the_last_one() -> None:
    data, model = load_data("digits"), narrow("student1", 0).float()
    model.classifier[-1] = torch.nn.Linear(100, 10)
    settings = FitSettings(3, batch_size=256, learning_rate=1e-9)
    hooks = Hooks(eligible=lambda m: False)
    result = fit(model, data, label_loss, settings, seed=0, device=CPU, hooks=hooks)
    assert not result.eligible and result.best_epoch == 3


def test_patience_stops_the_training() -> None:
    data, model = load_data("digits"), narrow("student1", 0).float()
    model.classifier[-1] = torch.nn.Linear(100, 10)
    idle = FitSettings(9, batch_size=512, learning_rate=1e-12)
    result = fit(model, data, label_loss, idle, seed=0, device=CPU, hooks=Hooks(patience=1))
    assert len(result.history) < 9


def test_half_precision_trains_too() -> None:
    data = load_data("digits")
    settings = FitSettings(epochs=3, batch_size=64, learning_rate=2e-3, precision="bf16")
    result = fit(network(0), data, label_loss, settings, seed=0, device=CPU)
    assert result.best.validation_accuracy > 0.8
    assert all(p.dtype == torch.float32 for p in result.model.parameters())


# Several networks


def test_networks_with_independent_losses_train_as_if_alone() -> None:
    data = load_data("digits")
    alone = [fit(network(seed), data, label_loss, SETTINGS, seed=4, device=CPU) for seed in (0, 1)]
    learners = {str(seed): Learner(network(seed), label_loss, SETTINGS) for seed in (0, 1)}
    together = fit_together(learners, data, seed=4, device=CPU)
    for seed in (0, 1):
        assert [r.train_loss for r in together[str(seed)].history] == [
            r.train_loss for r in alone[seed].history
        ]
        for actual, expected in zip(
            together[str(seed)].model.parameters(), alone[seed].model.parameters(), strict=True
        ):
            assert torch.equal(actual, expected)


def test_online_distillation_from_a_frozen_teacher_is_offline_distillation() -> None:
    """The reference for distillation over a network: the same losses, whether the teacher's logits
    are computed beforehand or in the same loop.
    """
    data, teacher = load_data("digits"), network(7)
    constant = FitSettings(epochs=2, batch_size=128, learning_rate=0.0, weight_decay=0.0)
    offline = fit(
        network(0),
        data,
        learning_from(FixedTeacher(copy.deepcopy(teacher), data, CPU)),
        SETTINGS,
        seed=4,
        device=CPU,
    )
    learners = {
        "student": Learner(network(0), learning_from(Peer("teacher")), SETTINGS),
        "teacher": Learner(teacher, label_loss, constant),
    }
    online = fit_together(learners, data, seed=4, device=CPU)["student"]
    for actual, expected in zip(online.model.parameters(), offline.model.parameters(), strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)


def test_no_gradient_flows_from_a_student_into_its_teacher() -> None:
    data, seen = load_data("digits"), []

    def loss(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        seen.append(batch.logits["teacher"].requires_grad)
        return label_loss(logits, batch)

    learners = {
        "student": Learner(network(0), loss, SETTINGS),
        "teacher": Learner(network(1), label_loss, SETTINGS),
    }
    fit_together(learners, data, seed=0, device=CPU)
    assert seen
    assert not any(seen)


def test_mutual_learning_trains_both_and_a_bad_loss_names_its_network() -> None:
    data = load_data("digits")
    settings = FitSettings(epochs=3, batch_size=64, learning_rate=2e-3)
    learners = {
        "a": Learner(network(0), mutual([Peer("b")]), settings),
        "b": Learner(network(1), mutual([Peer("a")]), settings),
    }
    results = fit_together(learners, data, seed=0, device=CPU)
    assert all(result.best.validation_accuracy > 0.8 for result in results.values())
    learners["b"] = Learner(network(1), lambda logits, batch: logits.sum() * float("nan"), settings)
    with pytest.raises(EdgecompressError, match="loss of b is nan at epoch 1, step 1"):
        fit_together(learners, data, seed=0, device=CPU)


def test_training_ends_when_every_learner_has_run_out_of_patience() -> None:
    data = load_data("digits")
    hooks = Hooks(patience=2)
    both = {name: Learner(network(0), label_loss, CONSTANT, hooks) for name in "ab"}
    results = fit_together(both, data, seed=0, device=CPU)
    assert [len(r.history) for r in results.values()] == [3, 3]
    one = {
        "a": Learner(network(0), label_loss, CONSTANT, hooks),
        "b": Learner(network(1), label_loss, CONSTANT),
    }
    assert len(fit_together(one, data, seed=0, device=CPU)["a"].history) == 6


def test_what_was_there_before_is_kept_when_no_epoch_is_better() -> None:
    data = load_data("digits")
    start = fit(network(0), data, label_loss, SETTINGS, seed=1, device=CPU)
    weights = copy.deepcopy(start.model.state_dict())
    ruin = FitSettings(epochs=5, batch_size=128, learning_rate=0.03, warmup=0.0, optimizer="sgd")
    hooks = Hooks(keep_initial=True, patience=2)

    def wrong(*arguments: Any, **named: Any) -> torch.Tensor:
        """The opposite of what is to be learned: on no processor is an epoch better."""
        return -label_loss(*arguments, **named)

    result = fit(start.model, data, wrong, ruin, seed=1, device=CPU, hooks=hooks)
    assert result.best_epoch == 0
    assert result.best.validation_accuracy == start.best.validation_accuracy
    assert len(result.history) == 2, "patience counts from the network before the training"
    assert all(torch.equal(value, weights[key]) for key, value in start.model.state_dict().items())
