"""Parameters and MACs of networks."""

from __future__ import annotations

import torch
from torch import nn

from edgecompress.measure.cost import cost
from edgecompress.models import ModelSource, build


def test_macs_of_known_networks() -> None:
    """VGG16 at 224 has 15.5 G MACs and 138.4 M parameters; ResNet-18 1.8 G and 11.7 M
    (torchvision's tables).
    """
    for name, macs, params in (
        ("vgg16", 15.47e9, 138_357_544),
        ("resnet18", 1.814e9, 11_689_512),
        ("mobilenet_v2", 0.301e9, 3_504_872),
    ):
        with torch.device("meta"):
            model = build(ModelSource(name, 1000, (3, 224, 224)))
        total = cost(model, torch.zeros(1, 3, 224, 224))
        assert abs(total.macs / macs - 1) < 0.005
        assert total.params == params


def test_macs_are_counted_by_hand_on_a_small_network() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.Conv2d(4, 4, 3, groups=4),
        nn.Flatten(),
        nn.Linear(4 * 36, 2),
    )
    rows = cost(model, torch.zeros(5, 3, 8, 8)).layers
    assert [row.macs for row in rows] == [4 * 3 * 9 * 64, 4 * 9 * 36, 2 * 4 * 36]
