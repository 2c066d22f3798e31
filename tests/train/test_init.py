"""Layer-sequential unit-variance initialisation."""

from __future__ import annotations

import torch
from torch import nn

from edgecompress.data import load_data
from edgecompress.train.init import has_norm, unit_variance_init
from tests.networks import narrow


def test_unit_variance_init_keeps_the_signal_of_a_plain_network() -> None:
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


def test_biases_become_zero_and_mode_and_hooks_are_restored() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3, bias=False)).train()
    unit_variance_init(model, torch.randn(32, 4))
    assert not model[0].bias.any()
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_networks_with_normalisation_are_recognised() -> None:
    for norm in (nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.LayerNorm(4), nn.InstanceNorm2d(4)):
        assert has_norm(nn.Sequential(nn.Conv2d(3, 4, 1), norm))
