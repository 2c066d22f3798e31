"""Several networks in one training loop, and what stays frozen in it."""

from __future__ import annotations

import copy

import pytest
import torch

from edgecompress.data import load_data
from edgecompress.errors import EdgecompressError, UsageError
from edgecompress.methods.distill import learning_from, mutual, peer
from edgecompress.methods.teacher import FixedTeacher
from edgecompress.models import ModelSource, build
from edgecompress.train.batches import Batch, order
from edgecompress.train.fit import Hooks, Learner, fit, fit_together, label_loss
from edgecompress.train.freeze import before_last
from edgecompress.train.schedule import factor
from edgecompress.train.settings import FitSettings

CPU = torch.device("cpu")
SETTINGS = FitSettings(epochs=2, batch_size=128, learning_rate=2e-3)


def network(seed: int, name: str = "lenet5") -> torch.nn.Module:
    torch.manual_seed(seed)
    return build(ModelSource(name, 10, (3, 32, 32)))


def test_networks_that_ignore_each_other_train_as_if_alone() -> None:
    data = load_data("digits")
    alone = [fit(network(seed), data, label_loss, SETTINGS, seed=4, device=CPU) for seed in (0, 1)]
    learners = {str(seed): Learner(network(seed), label_loss, SETTINGS) for seed in (0, 1)}
    together = fit_together(learners, data, seed=4, device=CPU)
    for seed in (0, 1):
        assert [r.train_loss for r in together[str(seed)].history] == [
            r.train_loss for r in alone[seed].history
        ]
        for one, other in zip(
            together[str(seed)].model.parameters(), alone[seed].model.parameters(), strict=True
        ):
            assert torch.equal(one, other)


def test_online_from_a_teacher_that_stands_still_is_offline() -> None:
    """The reference for distillation over a network: the same losses, whether the teacher is asked
    beforehand or runs beside.
    """
    data, teacher = load_data("digits"), network(7)
    still = FitSettings(epochs=2, batch_size=128, learning_rate=0.0, weight_decay=0.0)
    offline = fit(
        network(0),
        data,
        learning_from(FixedTeacher(copy.deepcopy(teacher), data, CPU)),
        SETTINGS,
        seed=4,
        device=CPU,
    )
    learners = {
        "student": Learner(network(0), learning_from(peer("teacher")), SETTINGS),
        "teacher": Learner(teacher, label_loss, still),
    }
    online = fit_together(learners, data, seed=4, device=CPU)["student"]
    for one, other in zip(online.model.parameters(), offline.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


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
    assert not any(seen)


def test_mutual_learning_trains_both_and_a_bad_loss_names_whose_it_is() -> None:
    data = load_data("digits")
    settings = FitSettings(epochs=3, batch_size=64, learning_rate=2e-3)
    learners = {
        "a": Learner(network(0), mutual("b"), settings),
        "b": Learner(network(1), mutual("a"), settings),
    }
    results = fit_together(learners, data, seed=0, device=CPU)
    assert all(result.best.validation_accuracy > 0.8 for result in results.values())
    learners["b"] = Learner(network(1), lambda logits, batch: logits.sum() * float("nan"), settings)
    with pytest.raises(EdgecompressError, match="loss of b is nan at epoch 1, step 1"):
        fit_together(learners, data, seed=0, device=CPU)


def test_training_ends_when_every_learner_has_run_out_of_patience() -> None:
    data = load_data("digits")
    still = FitSettings(epochs=6, batch_size=512, learning_rate=0.0, weight_decay=0.0)
    hooks = Hooks(patience=2)
    results = fit_together(
        {n: Learner(network(0), label_loss, still, hooks) for n in "ab"}, data, seed=0, device=CPU
    )
    assert [len(r.history) for r in results.values()] == [3, 3]
    one = {
        "a": Learner(network(0), label_loss, still, hooks),
        "b": Learner(network(1), label_loss, still),
    }
    assert len(fit_together(one, data, seed=0, device=CPU)["a"].history) == 6


def test_what_is_frozen_stays_with_its_statistics_and_thaws_afterwards() -> None:
    data, model = load_data("digits"), network(0, "resnet20")
    frozen = before_last(model, 5)
    assert "conv1" in frozen
    assert "bn1" in frozen
    assert "fc" not in frozen
    before = copy.deepcopy(model.state_dict())
    settings = FitSettings(epochs=1, batch_size=128, learning_rate=1e-2, frozen=frozen)
    fit(model, data, label_loss, settings, seed=0, device=CPU)
    changed = {
        key.rpartition(".")[0]
        for key, value in model.state_dict().items()
        if not torch.equal(value, before[key])
    }
    assert changed.isdisjoint(frozen)
    assert {"fc", "layers.8.conv2", "layers.8.bn2"} <= changed
    assert all(p.requires_grad for p in model.parameters())
    with pytest.raises(UsageError, match=r"has 21 convolutions; allowed are 0\.\.21"):
        before_last(model, 22)


def test_the_last_five_convolutions_of_vgg16_are_the_sources() -> None:
    with torch.device("meta"):
        model = build(ModelSource("vgg16-nobias", 10, (3, 32, 32)))
    assert before_last(model, 5) == tuple(f"features.{i}" for i in (0, 2, 5, 7, 10, 12, 14, 17))


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_schedules(schedule: str) -> None:
    factors = [factor(schedule, step, 100, 0.1) for step in range(100)]
    assert factors[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[10] == 1.0
    assert factors[-1] == 1.0 if schedule == "constant" else factors[-1] < 0.02
    assert factor(schedule, 0, 100, 0.0) == 1.0


def test_the_order_is_a_function_of_seed_and_epoch_alone() -> None:
    first = order(100, 3, 1)
    torch.manual_seed(99)
    assert torch.equal(order(100, 3, 1), first)
    assert not torch.equal(order(100, 3, 2), first)
    assert not torch.equal(order(100, 4, 1), first)
    assert torch.equal(first.sort().values, torch.arange(100))


def test_half_precision_trains_too() -> None:
    data = load_data("digits")
    settings = FitSettings(epochs=3, batch_size=64, learning_rate=2e-3, precision="bf16")
    result = fit(network(0), data, label_loss, settings, seed=0, device=CPU)
    assert result.best.validation_accuracy > 0.8
    assert all(p.dtype == torch.float32 for p in result.model.parameters())


def test_convolutions_run_in_channels_last_and_are_left_as_they_were() -> None:
    data, model, seen = load_data("digits"), network(0, "resnet20"), []

    def loss(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        laid = [
            t.is_contiguous(memory_format=torch.channels_last)
            for t in (batch.images, model.get_submodule("conv1").weight)
        ]
        seen.append(all(laid))
        return label_loss(logits, batch)

    fit(model, data, loss, FitSettings(epochs=1, batch_size=256), seed=0, device=CPU)
    assert all(seen)
    assert all(p.is_contiguous() for p in model.parameters())
