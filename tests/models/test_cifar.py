"""Networks of other families for small images."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgecompress.measure.cost import cost
from edgecompress.models.registry import ModelSource, build

SIZES = {
    # parameters, MACs at 32x32
    "mobilenet_v2-cifar": (0.23e6, 25e6),
    "densenet-cifar": (0.19e6, 70e6),
    "vgg8-cifar": (1.0e6, 20e6),
}


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("channels", [1, 3])
def test_they_read_small_images_and_leave_several_pixels(name: str, channels: int) -> None:
    model = build(ModelSource(name, 7, (channels, 32, 32))).eval()
    seen = list[torch.Size]()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _m, _i, output: seen.append(output.shape))
    assert model(torch.zeros(2, channels, 32, 32)).shape == (2, 7)
    assert seen[0][2:] == (32, 32), "a stem of stride 1"
    assert seen[-1][2] >= 2
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize("name", SIZES)
def test_they_are_as_small_as_a_resnet20(name: str) -> None:
    params, macs = SIZES[name]
    found = cost(build(ModelSource(name, 10, (3, 32, 32))), torch.zeros(1, 3, 32, 32))
    assert found.params == pytest.approx(params, rel=0.2)
    assert found.macs == pytest.approx(macs, rel=0.3)
