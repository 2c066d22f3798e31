"""From pixels in memory to the input of a network: resize, centre crop, normalise.

A network keeps its own `Preprocess` (in the manifest of its checkpoint and the metadata of its
file), so that a teacher may read other sizes and statistics than its student.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of ImageNet's channels, which torchvision's pretrained networks
expect.
"""
PIXELS = 255.0
"""The scale of pixels: their largest value."""


class _PreprocessValues(TypedDict):
    mean: Sequence[float]
    std: Sequence[float]
    resize: int | None
    crop: int | None


class PreprocessValues(_PreprocessValues, total=False):
    """The fields of a `Preprocess` as JSON values; without `scale` it is that of pixels."""

    scale: float


@dataclass(frozen=True)
class Preprocess:
    """Resize the shorter side to `resize` pixels, cut out the central square of side `crop`, then
    compute (pixels / `scale` - mean) / std.

    `mean` and `std` have one value per channel, for values in 0..1. None skips a step. `scale` is 1
    where the inputs are not pixels.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: int | None = None
    crop: int | None = None
    scale: float = PIXELS

    def shape(self, native: tuple[int, int, int]) -> tuple[int, int, int]:
        """The input shape (C, h, w) for images of shape `native` (C, H, W)."""
        channels, height, width = native
        if self.resize is not None:
            height, width = _resized(height, width, self.resize)
        if self.crop is not None:
            height, width = min(height, self.crop), min(width, self.crop)
        return channels, height, width

    def __call__(self, pixels: Tensor) -> Tensor:
        """uint8 `pixels` (N, C, H, W) to float32 (N, C, h, w), on the same device."""
        images = pixels.float()
        if self.resize is not None:
            images = _resize(images, self.resize)
        if self.crop is not None:
            images = _centre_crop(images, self.crop)
        mean = torch.tensor(self.mean, device=images.device).reshape(1, -1, 1, 1)
        std = torch.tensor(self.std, device=images.device).reshape(1, -1, 1, 1)
        return images.div(self.scale).sub_(mean).div_(std)

    def as_dict(self) -> PreprocessValues:
        """As JSON values, which `from_dict` reads; the scale of pixels is left out."""
        values: PreprocessValues = {
            "mean": self.mean,
            "std": self.std,
            "resize": self.resize,
            "crop": self.crop,
        }
        if self.scale != PIXELS:
            values["scale"] = self.scale
        return values

    @staticmethod
    def from_dict(values: PreprocessValues) -> Preprocess:
        """The inverse of `as_dict`."""
        return Preprocess(
            tuple(values["mean"]),
            tuple(values["std"]),
            values["resize"],
            values["crop"],
            values.get("scale", PIXELS),
        )


def _resize(images: Tensor, shorter: int) -> Tensor:
    """float (N, C, H, W) with the shorter side resized, in whole grey levels as an image library
    stores them.
    """
    height, width = images.shape[2:]
    size = _resized(height, width, shorter)
    if size == (height, width):
        return images
    images = F.interpolate(
        images, size=size, mode="bilinear", align_corners=False, antialias=size[0] < height
    )
    return images.round_().clamp_(0, 255)


def _centre_crop(images: Tensor, side: int) -> Tensor:
    top = max(0, (images.shape[2] - side) // 2)
    left = max(0, (images.shape[3] - side) // 2)
    return images[:, :, top : top + side, left : left + side]


def _resized(height: int, width: int, shorter: int) -> tuple[int, int]:
    """Height and width when the shorter of them becomes `shorter`."""
    scale = shorter / min(height, width)
    return max(shorter, round(height * scale)), max(shorter, round(width * scale))
