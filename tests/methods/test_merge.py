"""Weight averages and matched channels: a permuted network is the same network, and is matched
back.
"""

from __future__ import annotations

import pytest
import torch

from edgecompress.methods.merge import averaged, matched, movable, permuted
from tests.networks import EXAMPLE, NARROW, graph_of, narrow


@pytest.mark.parametrize("name", sorted(NARROW))
def test_channels_in_another_order_compute_the_same(name: str) -> None:
    model, graph = narrow(name, 0), graph_of(name)
    generator = torch.Generator().manual_seed(3)
    order = {
        g: torch.randperm(g.size, generator=generator) for g in graph.groups if movable(model, g)
    }
    assert order
    x = torch.randn(2, *EXAMPLE.shape[1:], dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(permuted(model, order)(x), model(x), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", ["vgg16", "resnet20", "lenet5", "whole mobilenet_v2"])
def test_a_permuted_twin_is_matched_back(name: str) -> None:
    model, graph = narrow(name, 0), graph_of(name)
    generator = torch.Generator().manual_seed(3)
    twin = permuted(
        model,
        {g: torch.randperm(g.size, generator=generator) for g in graph.groups if movable(model, g)},
    )
    restored = matched(model, twin, graph)
    for expected, actual in zip(model.parameters(), restored.parameters(), strict=True):
        torch.testing.assert_close(actual, expected)


def test_the_mean_of_networks_has_the_mean_of_their_statistics() -> None:
    parts = [narrow("resnet20", seed) for seed in (0, 1, 2)]
    mean = averaged(parts)
    torch.testing.assert_close(
        mean.bn1.running_var, torch.stack([p.bn1.running_var for p in parts]).mean(0)
    )
    torch.testing.assert_close(mean.fc.weight, torch.stack([p.fc.weight for p in parts]).mean(0))
    assert mean.bn1.num_batches_tracked.dtype == torch.int64
