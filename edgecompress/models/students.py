"""The three students of García González (Politecnico di Torino, 2022): 3×3 convolutions, a pool to
7×7, fully connected layers.

Without biases, as in the source. Every convolution is followed by ReLU, every group of them by 2×2
max pooling: student 1 has three groups, students 2 and 3 have five (8 | 16 | 32 | 64 64 | 128 128),
so that 224×224 reaches the pool as 7×7 and 32×32 as 1×1. Dropout is off in evaluation (the source's
listing left it on).
"""

from __future__ import annotations

from typing import TypedDict

from torch import Tensor, nn

_CONVS = {1: (8, 64, 128), 2: (8, 16, 32, 64, 128), 3: (8, 16, 32, 64, 64, 128, 128)}
_HIDDEN = {1: (100,), 2: (100, 100, 50), 3: (100, 100, 100, 50)}
_POOL_AFTER = {1: (0, 1, 2), 2: (0, 1, 2, 3, 4), 3: (0, 1, 2, 4, 6)}


class Published(TypedDict):
    """Accuracy 0..1, bytes of the weights, and epochs."""

    accuracy: float
    weights_bytes: int
    epochs: int


SOURCE: dict[str, Published] = {
    "student1": {"accuracy": 0.615, "weights_bytes": 2763 * 1024, "epochs": 200},
    "student2": {"accuracy": 0.62, "weights_bytes": 2897 * 1024, "epochs": 100},
    "student3": {"accuracy": 0.669, "weights_bytes": 3657 * 1024, "epochs": 300},
}
"""What García González (2022) reports: accuracy on CIFAR-10's test images at 224×224 (called
validation there), bytes of the weights.
"""


class Student(nn.Module):
    """Student `number` (1, 2 or 3): images (N, in_channels, H, W) to logits (N, num_classes)."""

    def __init__(
        self, number: int, num_classes: int = 10, in_channels: int = 3, dropout: float = 0.55
    ) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        width = in_channels
        for place, channels in enumerate(_CONVS[number]):
            stages += [nn.Conv2d(width, channels, 3, padding=1, bias=False), nn.ReLU()]
            if place in _POOL_AFTER[number]:
                stages.append(nn.MaxPool2d(2))
            width = channels
        self.features = nn.Sequential(*stages)
        self.avgpool = nn.AdaptiveAvgPool2d((7, 7))
        head: list[nn.Module] = [nn.Flatten()]
        width *= 49
        for hidden in _HIDDEN[number]:
            head += [nn.Linear(width, hidden, bias=False), nn.ReLU(), nn.Dropout(dropout)]
            width = hidden
        self.classifier = nn.Sequential(*head, nn.Linear(width, num_classes, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of images `x` (N, C, H, W)."""
        return self.classifier(self.avgpool(self.features(x)))  # type: ignore[no-any-return]
