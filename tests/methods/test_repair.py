"""A cut network has its former statistics again; a network that was not cut is unchanged."""

from __future__ import annotations

import copy

import pytest
import torch

from edgecompress.core import layers, shrink
from edgecompress.core.shrink import kept_positions
from edgecompress.methods.repair import channel_statistics, repair_, repaired
from tests.networks import graph_of, narrow, random_keep

IMAGES = torch.randn(32, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_channels_of_a_plain_network_regain_their_mean_and_deviation() -> None:
    model, keep = narrow("vgg16", 1), random_keep(graph_of("vgg16").groups, 1, 0.6)
    before = channel_statistics(model, IMAGES)
    small = repaired(model, shrink(model, keep), keep, IMAGES)
    after, kept = channel_statistics(small, IMAGES), kept_positions(model, keep)
    *inner, last = [n for n, m in model.named_modules() if layers.is_mixing(m)]
    checked = 0
    for name in inner:
        remaining = kept.get(name, {}).get(
            "out", torch.ones(len(before[name][0]), dtype=torch.bool)
        )
        mean, std = before[name][0][remaining], before[name][1][remaining]
        reachable = (after[name][1] > 1e-6) & (std > 1e-6)
        torch.testing.assert_close(after[name][0], mean, atol=1e-6, rtol=0)
        # a gain that hit its limit may not reach the former deviation; most do
        checked += int(torch.isclose(after[name][1][reachable], std[reachable], rtol=1e-5).sum())
    assert checked > 0.8 * sum(len(after[name][0]) for name in inner)
    assert torch.equal(small.get_submodule(last).bias, model.get_submodule(last).bias)


def test_repair_brings_the_outputs_nearer() -> None:
    """Averaged over seeds, the repaired network is nearer to the uncut one than the merely cut
    network.
    """
    cut, repaired_ = 0.0, 0.0
    for seed in range(8):
        model, keep = narrow("vgg16_bn", seed), random_keep(graph_of("vgg16_bn").groups, seed, 0.7)
        with torch.no_grad():
            repair_(model, {}, {}, IMAGES)  # running statistics of the images, as after training
            expected = model(IMAGES)
            small = shrink(model, keep)
            cut += float((small(IMAGES) - expected).pow(2).mean())
            repaired_ += float(
                (repaired(model, small, keep, IMAGES)(IMAGES) - expected).pow(2).mean()
            )
    assert repaired_ < cut


@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2", "functional", "student1"])
def test_a_network_that_was_not_cut_keeps_its_outputs(name: str) -> None:
    model = narrow(name, 2)
    repair_(model, {}, {}, IMAGES)
    same = copy.deepcopy(model)
    with torch.no_grad():
        expected = model(IMAGES)
        repair_(same, channel_statistics(model, IMAGES), {}, IMAGES)
        torch.testing.assert_close(same(IMAGES), expected, atol=1e-7, rtol=1e-7)


def test_a_transposed_convolution_is_scaled_by_output() -> None:
    layer = torch.nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False).double()
    x, factor = (
        torch.randn(1, 4, 5, 5, dtype=torch.float64),
        torch.rand(6, dtype=torch.float64) + 0.5,
    )
    with torch.no_grad():
        expected = layer(x) * factor.reshape(1, -1, 1, 1)
        layer.weight.copy_(layers.scale_outputs(layer, factor))
        torch.testing.assert_close(layer(x), expected)
