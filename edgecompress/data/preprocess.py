"""From pixels in memory to what a network reads: resize, centre crop, normalise.

A network keeps its own `Preprocess` (in its checkpoint's notes and its file's metadata), so that a
teacher may read other sizes and statistics than its student.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of ImageNet's channels, which torchvision's pretrained networks
expect.
"""


@dataclass(frozen=True)
class Preprocess:
    """The shorter side is resized to `resize` pixels, the middle square of side `crop` cut out,
    then (pixels / `scale` - mean) / std.

    `mean` and `std` (C,) are of values in 0..1. None leaves that step out. `scale` is 1 where the
    inputs are no pixels.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: int | None = None
    crop: int | None = None
    scale: float = 255

    def shape(self, native: tuple[int, int, int]) -> tuple[int, int, int]:
        """(C, h, w) of what images of shape `native` (C, H, W) become."""
        channels, height, width = native
        if self.resize is not None:
            height, width = _resized(height, width, self.resize)
        if self.crop is not None:
            height, width = min(height, self.crop), min(width, self.crop)
        return channels, height, width

    def __call__(self, pixels: Tensor) -> Tensor:
        """uint8 (B, C, H, W) to float32 (B, C, h, w), on the device of `pixels`."""
        images = pixels.float()
        height, width = images.shape[2:]
        if self.resize is not None and (height, width) != (
            wanted := _resized(height, width, self.resize)
        ):
            images = F.interpolate(
                images,
                size=wanted,
                mode="bilinear",
                align_corners=False,
                antialias=wanted[0] < height,
            )
            images = images.round_().clamp_(0, 255)  # as an image library stores it
        if self.crop is not None:
            top, left = (max(0, (side - self.crop) // 2) for side in images.shape[2:])
            images = images[:, :, top : top + self.crop, left : left + self.crop]
        mean, std = (
            torch.tensor(values, device=images.device).reshape(1, -1, 1, 1)
            for values in (self.mean, self.std)
        )
        return images.div(self.scale).sub_(mean).div_(std)

    def as_dict(self) -> dict[str, Any]:
        """As JSON values; `from_dict` takes them back."""
        values = asdict(self)
        return (
            values
            if self.scale != 255
            else {key: value for key, value in values.items() if key != "scale"}
        )

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Preprocess:
        """What `as_dict` gave."""
        return Preprocess(
            tuple(values["mean"]),
            tuple(values["std"]),
            values["resize"],
            values["crop"],
            values.get("scale", 255),
        )


def _resized(height: int, width: int, shorter: int) -> tuple[int, int]:
    scale = shorter / min(height, width)
    return max(shorter, round(height * scale)), max(shorter, round(width * scale))
