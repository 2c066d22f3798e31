"""Images in memory: uint8 tensors, normalised and augmented as whole batches.

Shapes: `Images.pixels` (N, C, H, W) uint8, `labels` (N,) int64, `ids` (N,) int64. A batch is float32 (B, C, H, W).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Images:
    """One split."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return int(self.labels.shape[0])

    def digest(self) -> str:
        """SHA-256 (hex) of pixels and labels: what this split is."""
        hashed = hashlib.sha256(self.pixels.numpy().tobytes())
        hashed.update(self.labels.numpy().tobytes())
        return hashed.hexdigest()


@dataclass(frozen=True)
class Augmentation:
    """Whole-batch augmentation: random horizontal flips, shifts of at most `shift` pixels (edges repeated), a cut-out square."""

    flip: bool = False
    shift: int = 0
    cutout: int = 0

    def __call__(self, batch: Tensor, generator: torch.Generator) -> Tensor:
        """`batch` (B, C, H, W) augmented; every random number comes from `generator` (CPU)."""
        count, _, height, width = batch.shape
        if self.flip:
            flips = torch.rand(count, generator=generator) < 0.5
            batch = torch.where(flips.to(batch.device)[:, None, None, None], batch.flip(3), batch)
        if self.shift:
            batch = self._shifted(batch, generator)
        if self.cutout:
            top = torch.randint(0, height, (count, 1), generator=generator)
            left = torch.randint(0, width, (count, 1), generator=generator)
            rows = (torch.arange(height) - top).abs() < self.cutout / 2
            columns = (torch.arange(width) - left).abs() < self.cutout / 2
            hole = (rows[:, :, None] & columns[:, None, :])[:, None].to(batch.device)
            batch = batch.masked_fill(hole, 0.0)
        return batch

    def _shifted(self, batch: Tensor, generator: torch.Generator) -> Tensor:
        count, channels, height, width = batch.shape
        offsets = torch.randint(0, 2 * self.shift + 1, (2, count, 1), generator=generator)
        padded = F.pad(batch, [self.shift] * 4, mode="replicate")
        rows = (offsets[0] + torch.arange(height)).to(batch.device)[:, None, :, None]
        columns = (offsets[1] + torch.arange(width)).to(batch.device)[:, None, None, :]
        samples = torch.arange(count, device=batch.device)[:, None, None, None]
        return padded[samples, torch.arange(channels, device=batch.device)[None, :, None, None], rows, columns]


@dataclass(frozen=True)
class DataSet:
    """Three splits with what is needed to read them: class names, and mean and standard deviation (C,) of pixels in 0..1."""

    name: str
    label: str
    """How outputs call it, e.g. `digits (demo)`."""
    classes: tuple[str, ...]
    train: Images
    validation: Images
    test: Images
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augmentation = field(default_factory=Augmentation)
    skipped: tuple[str, ...] = ()
    """Files that could not be read and were skipped."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        _, channels, height, width = self.train.pixels.shape
        return channels, height, width

    def normalised(self, pixels: Tensor) -> Tensor:
        """uint8 (B, C, H, W) to float32: (pixels / 255 - mean) / std, each channel by its own."""
        mean = torch.tensor(self.mean, device=pixels.device).reshape(1, -1, 1, 1)
        std = torch.tensor(self.std, device=pixels.device).reshape(1, -1, 1, 1)
        return (pixels.float() / 255 - mean) / std

    def digest(self) -> str:
        """SHA-256 (hex) of all three splits."""
        joined = "".join(split.digest() for split in (self.train, self.validation, self.test))
        return hashlib.sha256(joined.encode()).hexdigest()


def channel_statistics(pixels: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of uint8 `pixels` (N, C, H, W), in 0..1."""
    values = pixels.float().transpose(0, 1).flatten(1) / 255
    return tuple(round(v, 6) for v in values.mean(1).tolist()), tuple(round(v, 6) for v in values.std(1).tolist())


def stratified(labels: Tensor, shares: tuple[float, ...], seed: int = 20221121) -> list[Tensor]:
    """Split indices 0..N-1 into parts of the given `shares` (the rest goes to the first), each class in proportion.

    Independent of the run's seed: the same data always gives the same split.
    """
    generator = torch.Generator().manual_seed(seed)
    parts: list[list[Tensor]] = [[] for _ in range(len(shares) + 1)]
    for label in labels.unique().tolist():
        members = (labels == label).nonzero()[:, 0]
        members = members[torch.randperm(len(members), generator=generator)]
        start = 0
        for number, share in enumerate(shares, start=1):
            count = round(share * len(members))
            parts[number].append(members[start : start + count])
            start += count
        parts[0].append(members[start:])
    return [torch.cat(part).sort().values if part else torch.empty(0, dtype=torch.long) for part in parts]
