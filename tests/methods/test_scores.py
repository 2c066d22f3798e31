"""Importance of channels, by each criterion."""

from __future__ import annotations

import copy

import pytest
import torch

from edgecompress.core import consumers, layers
from edgecompress.errors import UsageError
from edgecompress.methods import scores
from edgecompress.train.batches import Batch
from edgecompress.train.losses import label_loss
from tests.networks import graph_of, narrow


def test_taylor_scores_are_the_squared_derivative_of_a_gate() -> None:
    """Against a numerical derivative of the loss by a factor on one channel's consumers."""
    model, graph = narrow("resnet20", 0), graph_of("resnet20")
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3])
    batch = Batch(torch.arange(4), images, labels)
    values = scores.taylor(model, graph, label_loss, [batch])
    group = graph.groups[0]

    def loss_at(gate: float) -> float:
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


def test_taylor_scores_are_means_over_batches_and_the_mode_is_restored() -> None:
    model, graph = narrow("lenet5", 0).train(), graph_of("lenet5")
    generator = torch.Generator().manual_seed(0)
    batches = [
        Batch(
            torch.arange(2),
            torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=generator),
            torch.tensor([0, 1]),
        )
        for _ in range(2)
    ]
    both = scores.taylor(model, graph, label_loss, batches)
    each = [scores.taylor(model, graph, label_loss, [batch]) for batch in batches]
    assert model.training
    for group, values in both.items():
        torch.testing.assert_close(values, (each[0][group] + each[1][group]) / 2)


def test_magnitudes_follow_the_weights() -> None:
    model, graph = narrow("vgg16", 0), graph_of("vgg16")
    with torch.no_grad():
        model.features[0].weight[2] = 100.0
    for order in (1, 2):
        assert int(scores.magnitude(model, graph, order)[graph.group("features.0")].argmax()) == 2


@pytest.mark.parametrize("order", [1, 2])
def test_magnitudes_are_means_over_what_produces_and_reads_a_channel(order: int) -> None:
    model, graph = narrow("vgg16", 0), graph_of("vgg16")
    produces, reads = model.features[0].weight.detach(), model.features[2].weight.detach()
    weights = torch.cat([produces.flatten(1), reads.transpose(0, 1).flatten(1)], 1)  # (C, weights)
    expected = weights.abs().pow(order).mean(1).pow(1 / order)
    torch.testing.assert_close(
        scores.magnitude(model, graph, order)[graph.group("features.0")],
        expected / expected.mean(),
    )


def test_bn_is_the_mean_scale_and_needs_batchnorm() -> None:
    model, graph = narrow("resnet20", 0), graph_of("resnet20")
    norm = model.get_submodule("layers.0.bn1")
    with torch.no_grad():
        norm.weight.fill_(1.0)
        norm.weight[0] = -3.0
    expected = norm.weight.detach().abs()
    torch.testing.assert_close(
        scores.batchnorm_scale(model, graph)[graph.group("layers.0.conv1")],
        expected / expected.mean(),
    )
    with pytest.raises(UsageError, match="needs BatchNorm"):
        scores.batchnorm_scale(narrow("vgg16", 0), graph_of("vgg16"))


def test_random_scores_depend_on_the_seed_alone() -> None:
    graph = graph_of("vgg16")
    first, same, different = (scores.random(graph, seed) for seed in (1, 1, 2))
    for group in graph.groups:
        assert torch.equal(first[group], same[group])
        assert not torch.equal(first[group], different[group])
        assert bool(((first[group] >= 0) & (first[group] < 1)).all())
