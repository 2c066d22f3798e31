"""Images in memory: uint8 tensors; a batch is augmented as a whole, then resized and normalised.

Shapes: `Images.pixels` (N, C, H, W) uint8, `labels` (N,) int64; a regression has float32 inputs,
and labels (N, K). A batch that a network reads is float32 (B, C, h, w). How an image changes in one
view is a function of (seed, view, its place in the split), so that two processes, or a teacher's
cache and its student, see the same pixels.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from edgecompress.data.lazy import FilePixels
from edgecompress.data.preprocess import Preprocess
from edgecompress.data.task import Task


@dataclass(frozen=True)
class Images:
    """One split."""

    pixels: Tensor | FilePixels
    labels: Tensor

    def __len__(self) -> int:
        return int(self.labels.shape[0])

    def digest(self) -> str:
        """SHA-256 (hex) of pixels and labels: what this split is."""
        hashed = hashlib.sha256(self._pixel_bytes())
        hashed.update(self.labels.numpy().tobytes())
        return hashed.hexdigest()

    def rows(self, index: Tensor) -> Images:
        """The images at `index` (n,)."""
        pixels = self.pixels[index] if isinstance(self.pixels, Tensor) else self.pixels.rows(index)
        return Images(pixels, self.labels[index])

    def _pixel_bytes(self) -> bytes:
        return (
            self.pixels.numpy().tobytes()
            if isinstance(self.pixels, Tensor)
            else self.pixels.digest()
        )

    def pixel_digest(self) -> str:
        """SHA-256 (hex) of the pixels; of images on disk, of the digest of their files."""
        return hashlib.sha256(self._pixel_bytes()).hexdigest()


def stream(*parts: object) -> torch.Generator:
    """A generator (CPU) of random numbers that `parts` alone decide: the same on every machine and
    in every process.
    """
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


@dataclass(frozen=True)
class View:
    """What one view does to each image of a split: mirrored or not (N,), offset of the crop (N, 2),
    centre of the hole (N, 2).
    """

    flips: Tensor | None
    offsets: Tensor | None
    holes: Tensor | None
    augmentation: Augmentation

    def __call__(self, pixels: Tensor, ids: Tensor, fill: Tensor | None = None) -> Tensor:
        """`pixels` (B, C, H, W), the images `ids` (B,) of the split, changed; holes take the value
        `fill` (C,) (default 0).
        """
        device = pixels.device
        if self.offsets is not None:
            pixels = _shifted(pixels, self.offsets[ids].to(device), self.augmentation.shift)
        if self.flips is not None:
            mirrored = self.flips[ids].to(device)
            pixels = torch.where(mirrored[:, None, None, None], pixels.flip(3), pixels)
        if self.holes is not None:
            pixels = _with_holes(pixels, self.holes[ids].to(device), self.augmentation.cutout, fill)
        return pixels


def _shifted(pixels: Tensor, offsets: Tensor, shift: int) -> Tensor:
    """Crops of the images, which go on beyond their edges by `shift` pixels of the same colour, at
    `offsets` (B, 2) in 0..2 shift.
    """
    count, channels, height, width = pixels.shape
    rows = (offsets[:, :1] - shift + torch.arange(height, device=pixels.device)).clamp_(
        0, height - 1
    )
    columns = (offsets[:, 1:] - shift + torch.arange(width, device=pixels.device)).clamp_(
        0, width - 1
    )
    flat = (
        (rows[:, :, None] * width + columns[:, None, :])
        .reshape(count, 1, -1)
        .expand(-1, channels, -1)
    )
    return pixels.flatten(2).gather(2, flat).reshape(pixels.shape)


def _with_holes(pixels: Tensor, centres: Tensor, side: int, fill: Tensor | None) -> Tensor:
    height, width = pixels.shape[2:]
    rows = (torch.arange(height, device=pixels.device) - centres[:, :1]).abs() < side / 2
    columns = (torch.arange(width, device=pixels.device) - centres[:, 1:]).abs() < side / 2
    hole = (rows[:, :, None] & columns[:, None, :])[:, None]
    value = (
        torch.zeros(pixels.shape[1], device=pixels.device)
        if fill is None
        else fill.to(pixels.device)
    )
    return torch.where(hole, value.to(pixels.dtype)[None, :, None, None], pixels)


@dataclass(frozen=True)
class Augmentation:
    """Random horizontal flips, crops shifted by at most `shift` pixels (edges repeated), and a
    square hole of side `cutout`.
    """

    flip: bool = False
    shift: int = 0
    cutout: int = 0

    @property
    def active(self) -> bool:
        """Does it change anything?"""
        return self.flip or self.shift > 0 or self.cutout > 0

    def view(self, count: int, side: tuple[int, int], seed: int, number: int) -> View:
        """View `number` of a split of `count` images of `side` (H, W)."""
        drawn = stream("view", seed, number)
        flips = torch.rand(count, generator=drawn) < 0.5 if self.flip else None
        offsets = (
            torch.randint(0, 2 * self.shift + 1, (count, 2), generator=drawn)
            if self.shift
            else None
        )
        holes = (
            (torch.rand(count, 2, generator=drawn) * torch.tensor(side)).long()
            if self.cutout
            else None
        )
        return View(flips, offsets, holes, self)


@dataclass(frozen=True)
class DataSet:
    """Three splits with what is needed to read them: class names, and how pixels become what a
    network reads.
    """

    name: str
    label: str
    """How outputs call it, e.g. `digits (demo)`."""
    classes: tuple[str, ...]
    train: Images
    validation: Images
    test: Images
    preprocess: Preprocess
    augmentation: Augmentation = field(default_factory=Augmentation)
    skipped: tuple[str, ...] = ()
    """Files that could not be read and were skipped."""
    task: Task = field(default_factory=Task)
    parts: tuple[DataSet, ...] = ()
    """The data sets that were joined to this one."""

    @property
    def native_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image in memory."""
        _, channels, height, width = self.train.pixels.shape
        return channels, height, width

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one image as a network reads it."""
        return self.preprocess.shape(self.native_shape)

    def normalised(self, pixels: Tensor) -> Tensor:
        """uint8 (B, C, H, W) to what a network reads, float32 (B, C, h, w)."""
        return self.preprocess(pixels)

    def digest(self) -> str:
        """SHA-256 (hex) of all three splits."""
        joined = "".join(split.digest() for split in (self.train, self.validation, self.test))
        return hashlib.sha256(joined.encode()).hexdigest()

    def training_key(self) -> dict[str, Any]:
        """What decides the pixels of the training split: its digest and the augmentation, as JSON
        values.
        """
        return {"pixels": self.train.pixel_digest(), "augmentation": asdict(self.augmentation)}


def channel_statistics(pixels: Tensor | FilePixels) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of uint8 `pixels` (N, C, H, W), in 0..1; a
    constant channel has 0.001.

    Of images on disk, those of 2,000 of them, evenly spread.
    """
    if not isinstance(pixels, Tensor):
        pixels = pixels[torch.linspace(0, len(pixels) - 1, min(len(pixels), 2000)).long()]
    values = pixels.float().transpose(0, 1).flatten(1) / 255
    deviations = (max(round(v, 6), 1e-3) for v in values.std(1).tolist())
    return tuple(round(v, 6) for v in values.mean(1).tolist()), tuple(deviations)


def stratified(labels: Tensor, shares: tuple[float, ...], seed: int = 20221121) -> list[Tensor]:
    """Split indices 0..N-1 into parts of the given `shares` (the rest goes to the first), each
    class in proportion.

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
    return [
        torch.cat(part).sort().values if part else torch.empty(0, dtype=torch.long)
        for part in parts
    ]
