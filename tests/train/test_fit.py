from __future__ import annotations

import pytest
import torch
from torch import nn

from edgecompress.data import load_data
from edgecompress.errors import EdgecompressError
from edgecompress.methods import scores
from edgecompress.methods.distill import kl_divergence, learning_from
from edgecompress.methods.teacher import FixedTeacher
from edgecompress.models import ModelSource, build
from edgecompress.train.batches import batches, evaluate
from edgecompress.train.fit import fit, label_loss
from edgecompress.train.init import has_norm, unit_variance_init
from edgecompress.train.settings import FitSettings, default_settings
from tests.networks import graph_of, narrow

CPU = torch.device("cpu")


def test_training_learns_restores_the_best_epoch_and_repeats_exactly() -> None:
    data = load_data("digits")
    results = []
    for _ in range(2):
        torch.manual_seed(0)
        model = build(ModelSource("lenet5", 10, (3, 32, 32)))
        result = fit(
            model, data, label_loss, FitSettings(epochs=3, learning_rate=2e-3), seed=1, device=CPU
        )
        results.append((result, model.state_dict()))
    (first, state), (second, again) = results
    assert first.best.validation_accuracy > 0.85
    assert [r.train_loss for r in first.history] == [r.train_loss for r in second.history]
    assert all(torch.equal(state[k], again[k]) for k in state)
    rebuilt = build(ModelSource("lenet5", 10, (3, 32, 32)))
    rebuilt.load_state_dict(state)
    assert evaluate(rebuilt, data, data.validation, CPU)[1] == max(
        r.validation_accuracy for r in first.history
    )


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step() -> None:
    data = load_data("digits")
    model = build(ModelSource("lenet5", 10, (3, 32, 32)))
    with pytest.raises(EdgecompressError, match="epoch 1, step 2"):
        calls = iter([1.0, float("nan")])
        fit(
            model,
            data,
            lambda logits, batch: logits.mean() * next(calls),
            FitSettings(epochs=1),
            seed=0,
            device=CPU,
        )


def test_dropout_is_set_for_the_training_and_put_back() -> None:
    data = load_data("digits")
    model = build(ModelSource("student1", 10, (3, 32, 32)))
    seen = []
    settings = FitSettings(epochs=1, batch_size=600, dropout=0.0)
    dropout = next(m for m in model.modules() if isinstance(m, nn.Dropout))
    fit(
        model,
        data,
        lambda logits, batch: (seen.append(dropout.p), label_loss(logits, batch))[1],
        settings,
        seed=0,
        device=CPU,
    )
    assert set(seen) == {0.0}
    assert dropout.p == 0.55


def test_unit_variance_init_keeps_a_plain_network_alive() -> None:
    data = load_data("digits")
    torch.manual_seed(0)
    model = narrow("vgg16", 0).float()
    assert not has_norm(model)
    images = data.normalised(data.train.pixels[:64])
    unit_variance_init(model, images, head_gain=0.1)
    deviations = {}
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(
                lambda _m, _i, out, name=name: deviations.__setitem__(name, float(out.std()))
            )
    with torch.no_grad():
        model(images)
    *inner, last = deviations.values()
    assert all(0.9 < value < 1.1 for value in inner)
    assert 0.09 < last < 0.11


def test_kl_of_equal_logits_is_zero_and_its_scale_is_t_squared() -> None:
    student, teacher = torch.randn(4, 5), torch.randn(4, 5)
    assert abs(float(kl_divergence(student, student, 4.0))) < 1e-6
    by_hand = (
        torch.softmax(teacher / 3, 1)
        * (torch.log_softmax(teacher / 3, 1) - torch.log_softmax(student / 3, 1))
    ).sum(1).mean() * 9
    torch.testing.assert_close(kl_divergence(student, teacher, 3.0), by_hand)


def test_the_teacher_is_not_touched() -> None:
    data = load_data("digits")
    teacher = build(ModelSource("resnet20", 10, (3, 32, 32)))
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    student = build(ModelSource("lenet5", 10, (3, 32, 32)))
    loss = learning_from(FixedTeacher(teacher, data, CPU))
    fit(student, data, loss, FitSettings(epochs=1, batch_size=256), seed=0, device=CPU)
    assert not teacher.training
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters())


def test_taylor_scores_are_the_squared_derivative_of_a_gate() -> None:
    """Against a numerical derivative of the loss by a factor on one channel's consumers."""
    model, graph = narrow("resnet20", 0), graph_of("resnet20")
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3])
    from edgecompress.core import consumers, layers
    from edgecompress.train.batches import Batch

    batch = Batch(torch.arange(4), images, labels)
    values = scores.taylor(model, graph, label_loss, [batch])
    group = graph.groups[0]

    def loss_at(gate: float) -> float:
        import copy

        gated = copy.deepcopy(model)
        with torch.no_grad():
            for member in consumers(model, group):
                layer = gated.get_submodule(member.layer)
                factor = torch.ones(layers.axis_size(layer, "in"), dtype=torch.float64)
                factor[member.index[1]] = gate
                layer.weight.copy_(layers.scale_inputs(layer, factor))
            return float(label_loss(gated(images), batch))

    step = 1e-5
    slope = (loss_at(1 + step) - loss_at(1 - step)) / (2 * step)
    assert float(values[group][1]) == pytest.approx(slope**2, rel=1e-4)
    assert all(p.grad is None for p in model.parameters())


def test_magnitudes_follow_the_weights_and_bn_needs_batchnorm() -> None:
    from edgecompress.errors import UsageError

    model, graph = narrow("vgg16", 0), graph_of("vgg16")
    with torch.no_grad():
        model.features[0].weight[2] = 100.0
    for order in (1, 2):
        assert int(scores.magnitude(model, graph, order)[graph.group("features.0")].argmax()) == 2
    with pytest.raises(UsageError, match="needs BatchNorm"):
        scores.batchnorm_scale(model, graph)


def test_defaults_and_batches() -> None:
    data = load_data("digits")
    wide = nn.Linear(2000, 2000)
    plain, normalised = (default_settings(wide, data, normalised=n) for n in (False, True))
    assert (
        plain.learning_rate
        < normalised.learning_rate
        == default_settings(nn.Identity(), data, normalised=False).learning_rate
    )
    parts = list(batches(data, FitSettings(1, batch_size=100), CPU, 0, 1))
    assert sorted(torch.cat([b.ids for b in parts]).tolist()) == list(range(1169))
    assert torch.equal(parts[0].labels, data.train.labels[parts[0].ids])
