"""Networks of three other families for 32×32 images: torchvision's classes with a stem, strides
and widths for small images.

A stem of stride 2 and five halvings, as for 224×224, would leave one pixel. All read images
(N, C, H, W) and give logits (N, num_classes).
"""

from __future__ import annotations

from torch import Tensor, nn

from edgecompress.models.vision import torchvision

MOBILENET = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1))
"""Expansion, channels, repeats and stride of MobileNetV2's stages (Sandler et al. 2018, table 2),
two strides fewer, without the last two stages, which are for more classes.
"""


def mobilenet_v2_cifar(num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """MobileNetV2 with a stem of stride 1, half as wide: inverted residuals."""
    settings = [list(stage) for stage in MOBILENET]
    model: nn.Module = torchvision().models.MobileNetV2(
        num_classes=num_classes, width_mult=0.5, inverted_residual_setting=settings, dropout=0.0
    )
    stem = model.get_submodule("features.0")
    first = stem.get_submodule("0")
    stem.register_module("0", _stem(in_channels, _outputs(first)))
    return model


def densenet_cifar(num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """DenseNet-BC with three blocks of six layers, growth 12 and a 3×3 stem (Huang et al. 2017,
    section 4.2: L = 40, k = 12).
    """
    model: nn.Module = torchvision().models.DenseNet(
        growth_rate=12, block_config=(6, 6, 6), num_init_features=24, num_classes=num_classes
    )
    features = model.get_submodule("features")
    features.register_module("conv0", _stem(in_channels, 24))
    features.register_module("pool0", nn.Identity())
    return model


class Vgg8(nn.Module):
    """VGG with five 3×3 convolutions and BatchNorm, pooled after each but the last."""

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        widths = (32, 64, 128, 256, 256)
        for place, width in enumerate(widths):
            layers += [_stem(in_channels, width), nn.BatchNorm2d(width), nn.ReLU()]
            if place < len(widths) - 1:
                layers.append(nn.MaxPool2d(2))
            in_channels = width
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(in_channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of images `x` (N, C, H, W)."""
        return self.fc(self.pool(self.features(x)).flatten(1))  # type: ignore[no-any-return]


def _stem(inputs: int, outputs: int) -> nn.Conv2d:
    convolution = nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return convolution


def _outputs(layer: nn.Module) -> int:
    return int(layer.get_parameter("weight").shape[0])
