"""LeNet-5 and the multi-layer perceptron."""

from __future__ import annotations

import torch

from edgecompress.models.small import LeNet, Mlp


def test_lenet_has_the_parameters_of_its_layers() -> None:
    """Biases included: 6 * 26, 16 * 151, 120 * 401, 84 * 121, 10 * 85."""
    model = LeNet(num_classes=10, in_channels=1)
    assert sum(p.numel() for p in model.parameters()) == 156 + 2416 + 48120 + 10164 + 850
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 10)
    assert model(torch.zeros(2, 1, 64, 48)).shape == (2, 10), "the pool fixes the map to 5x5"


def test_mlp_flattens_images_and_has_the_given_widths() -> None:
    model = Mlp(12, (7, 5), num_classes=3)
    assert model(torch.zeros(2, 3, 2, 2)).shape == (2, 3)
    widths = [layer.out_features for layer in model.layers if isinstance(layer, torch.nn.Linear)]
    assert widths == [7, 5, 3]
