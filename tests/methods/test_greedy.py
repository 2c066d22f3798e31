"""Greedy merging: what it chooses, and that the student mimics it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgecompress.core import trace
from edgecompress.core.stack import stack
from edgecompress.methods.greedy import GreedySettings, identify, mimic
from edgecompress.models import ModelSource, build
from tests.networks import NARROW, narrow


def two_layers(useful: int, width: int, seed: int = 0) -> nn.Module:
    """A network whose output reads only `useful` of `width` hidden channels."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(6, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 3)
    )
    with torch.no_grad():
        model[4].weight[:, useful:] = 0
        model[2].weight[:useful, useful:] = 0
    return model


def settings(share: float, epochs: int = 8, weight: float = 5.0) -> GreedySettings:
    return GreedySettings(share, [weight] * epochs, batch_size=32, rate=3e-3)


def test_channels_that_matter_are_chosen() -> None:
    """Where half of the channels are never read, the other half is chosen, in both layers: the
    second choice follows from the first.
    """
    model, x = two_layers(8, 16), torch.randn(512, 6, generator=torch.Generator().manual_seed(1))
    keep, openness = identify(model, trace(model, x[:1]), x, settings(0.5))
    for group, mask in keep.items():
        assert mask.tolist() == [True] * 8 + [False] * 8, f"{group.name}: {openness[group]}"


def test_a_student_that_can_mimic_does() -> None:
    model, x = two_layers(8, 16), torch.randn(512, 6, generator=torch.Generator().manual_seed(1))
    graph = trace(model, x[:1])
    keep = {group: torch.arange(16) < 8 for group in graph.groups}
    small, rows = mimic(model, keep, x, settings(0.5, epochs=2))
    assert [row.layer for row in rows] == ["0", "2", "4"]
    assert all(row.after <= 1e-6 for row in rows), (
        "nothing that matters is missing, so there is nothing to learn"
    )
    torch.testing.assert_close(small(x), model(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["mlp", "lenet5", "resnet20", "mobilenet_v2", "densenet121"])
def test_any_network_that_stacks_is_merged(name: str) -> None:
    source = ModelSource(name, 4, (3, 32, 32))
    torch.manual_seed(0)
    parents = [
        narrow(name, seed).float() if name in NARROW else build(source).eval() for seed in (0, 1)
    ]
    x = torch.randn(16, 3, 32, 32)
    wide = stack(parents, x[:1])
    graph = trace(wide, x[:1])
    settings_ = GreedySettings(0.5, [1.0], batch_size=8)
    keep, _ = identify(wide, graph, x, settings_)
    assert all(int(mask.sum()) * 2 == group.size for group, mask in keep.items())
    small, rows = mimic(wide, keep, x, settings_)
    assert sum(p.numel() for p in small.parameters()) == sum(
        p.numel() for p in parents[0].parameters()
    )
    assert all(row.after <= row.before for row in rows)
    assert small(x).shape == wide(x).shape
