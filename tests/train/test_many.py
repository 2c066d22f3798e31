"""Networks trained at once are the same as networks trained one at a time."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from edgecompress.core import trace
from edgecompress.data.sine import FLOOR, load_sine
from edgecompress.errors import EdgecompressError, UsageError
from edgecompress.methods.gates import Gated
from edgecompress.models import ModelSource, build
from edgecompress.models.small import LeNet, Mlp
from edgecompress.train.batches import order
from edgecompress.train.many import ManySettings, losses_of, train_many


def networks(count: int, seed: int = 0) -> list[nn.Module]:
    torch.manual_seed(seed)
    return [Mlp(1, (20,), 1) for _ in range(count)]


def one_at_a_time(
    model: nn.Module, x: torch.Tensor, y: torch.Tensor, seed: int, epochs: int, rate: float
) -> nn.Module:
    """A plain loop, written without the code under test."""
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    for epoch in range(1, epochs + 1):
        for ids in order(len(x), seed, epoch).split(32):
            optimizer.zero_grad()
            (model(x[ids]) - y[ids]).square().mean().backward()
            optimizer.step()
    return model


def test_the_sine_problem_has_its_floor() -> None:
    data = load_sine()
    expected = torch.sin(10 * torch.pi * data.test.x.double())
    assert float((data.test.y - expected).square().mean()) == pytest.approx(FLOOR, rel=0.05)
    assert len(data.train.x) == 10_000
    assert not torch.equal(data.train.x, data.test.x)
    assert torch.equal(load_sine().train.y, data.train.y)


@pytest.mark.parametrize("kind", ["mlp", "lenet"])
def test_training_at_once_is_training_one_at_a_time(kind: str) -> None:
    torch.manual_seed(1)
    x = torch.rand(200, 1) if kind == "mlp" else torch.randn(96, 3, 32, 32)
    y = torch.sin(10 * x) if kind == "mlp" else torch.randn(96, 5)
    models: list[nn.Module] = networks(4) if kind == "mlp" else [LeNet(5) for _ in range(3)]
    seeds, rate = list(range(10, 10 + len(models))), 0.01
    alone = [
        one_at_a_time(copy.deepcopy(m), x, y, s, 3, rate)
        for m, s in zip(models, seeds, strict=True)
    ]
    together = train_many(models, x, y, ManySettings(3, lambda _: rate), seeds=seeds)
    for reference, model in zip(alone, together, strict=True):
        for a, b in zip(model.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    expected = torch.stack([(m(x) - y).square().mean() for m in alone]).detach()
    torch.testing.assert_close(losses_of(together, x, y), expected, atol=1e-5, rtol=1e-4)


def test_each_network_may_have_its_own_targets() -> None:
    x = torch.rand(100, 1)
    targets = torch.stack([torch.zeros(100, 1), torch.ones(100, 1)])
    settings = ManySettings(60, lambda _: 0.05)
    low, high = train_many(networks(2), x, targets, settings, seeds=[0, 1])
    assert float(low(x).mean().detach()) == pytest.approx(0, abs=0.05)
    assert float(high(x).mean().detach()) == pytest.approx(1, abs=0.05)


def test_gated_networks_train_together_with_their_penalty() -> None:
    x = torch.rand(64, 1)
    y = torch.sin(3 * x)
    models = networks(3)
    gated = [Gated(m, trace(m, x[:1]), noise=0.0, seed=n) for n, m in enumerate(models)]
    start = [g.log_alpha.detach().clone() for g in gated]

    def penalty(parameters: object, epoch: int) -> torch.Tensor:
        openness = torch.sigmoid(parameters["log_alpha"])  # type: ignore[index]
        return (0.5 - openness.mean(1)).square() * 10

    settings = ManySettings(5, lambda _: 0.01, faster=(("log_alpha", 10.0),))
    train_many(gated, x, y, settings, seeds=[0, 1, 2], penalty=penalty)
    assert all(
        float(g.log_alpha.mean()) < float(s.mean()) for g, s in zip(gated, start, strict=True)
    )


def test_networks_that_cannot_be_batched_or_diverge_are_reported() -> None:
    with pytest.raises(UsageError, match="one at a time"):
        train_many(
            [build(ModelSource("resnet20", 10, (3, 32, 32)))],
            torch.zeros(1),
            torch.zeros(1),
            ManySettings(1, lambda _: 0.1),
            seeds=[0],
        )
    with pytest.raises(EdgecompressError, match="loss of network 0 is not finite after epoch"):
        train_many(
            networks(1),
            torch.rand(64, 1),
            torch.rand(64, 1),
            ManySettings(5, lambda _: 1e12),
            seeds=[0],
        )
