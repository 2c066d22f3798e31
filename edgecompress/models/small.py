"""LeNet-5 with Tanh (LeCun et al. 1998, as used by Pašen 2022) and a plain multi-layer
perceptron.
"""

from __future__ import annotations

from torch import Tensor, nn


class LeNet(nn.Module):
    """Two 5×5 convolutions (6, 16), average pools, fully connected 120-84; images (N, C, H, W) to
    logits (N, num_classes).
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 6, 5),
            nn.Tanh(),
            nn.AvgPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.Tanh(),
            nn.AvgPool2d(2),
        )
        self.avgpool = nn.AdaptiveAvgPool2d((5, 5))
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(400, 120),
            nn.Tanh(),
            nn.Linear(120, 84),
            nn.Tanh(),
            nn.Linear(84, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of images `x` (N, C, H, W)."""
        return self.classifier(self.avgpool(self.features(x)))  # type: ignore[no-any-return]


class Mlp(nn.Module):
    """Fully connected ReLU network over flattened inputs of `features` values, with the given
    hidden widths.
    """

    def __init__(
        self, features: int, hidden: tuple[int, ...] = (100,), num_classes: int = 10
    ) -> None:
        super().__init__()
        stages: list[nn.Module] = [nn.Flatten()]
        for width in hidden:
            stages += [nn.Linear(features, width), nn.ReLU()]
            features = width
        self.layers = nn.Sequential(*stages, nn.Linear(features, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of `x` (N, ...)."""
        return self.layers(x)  # type: ignore[no-any-return]
