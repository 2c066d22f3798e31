"""Data sets and their augmentation.

Shapes: `Images.pixels` (N, C, H, W) uint8, `labels` (N,) int64; a regression has float32 inputs and
labels (N, K). The input of a network is float32 (B, C, h, w). A batch is augmented as uint8, then
resized and normalised.

How an image is augmented is a function of (seed, view, its place in the split), so that two
processes, or a teacher's cache and its student, see the same pixels.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from typing import Literal

import torch
from torch import Tensor

from edgecompress.data.lazy import FilePixels
from edgecompress.data.preprocess import PIXELS, Preprocess
from edgecompress.data.task import Reconstruction, Task
from edgecompress.errors import UsageError


@dataclass(frozen=True)
class Images:
    """One split: `pixels` (N, C, H, W), in memory or on disk, and `labels` (N,)."""

    pixels: Tensor | FilePixels
    labels: Tensor

    def __len__(self) -> int:
        return int(self.labels.shape[0])

    def digest(self) -> str:
        """SHA-256 (hex) of pixels and labels."""
        hashed = hashlib.sha256(self._pixel_bytes())
        hashed.update(self.labels.numpy().tobytes())
        return hashed.hexdigest()

    def rows(self, index: Tensor) -> Images:
        """The images at `index`, (n,) int64."""
        pixels = self.pixels[index] if isinstance(self.pixels, Tensor) else self.pixels.rows(index)
        return Images(pixels, self.labels[index])

    def _pixel_bytes(self) -> bytes:
        if isinstance(self.pixels, Tensor):
            return self.pixels.numpy().tobytes()
        return self.pixels.digest()

    def pixel_digest(self) -> str:
        """SHA-256 (hex) of the pixels; for images on disk, of the digest of their files."""
        return hashlib.sha256(self._pixel_bytes()).hexdigest()


def stream(*parts: object) -> torch.Generator:
    """A random generator on the CPU whose seed depends on `parts` alone: the same on every machine
    and in every process.
    """
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


@dataclass(frozen=True)
class View:
    """What one view does to each of the N images of a split. None skips a step."""

    flips: Tensor | None
    """Mirrored or not, bool (N,)."""
    offsets: Tensor | None
    """Row and column of the crop in the padded image, (N, 2)."""
    holes: Tensor | None
    """Row and column of the hole's centre, (N, 2)."""
    augmentation: Augmentation

    def __call__(self, pixels: Tensor, ids: Tensor, fill: Tensor | None = None) -> Tensor:
        """The augmented `pixels` (B, C, H, W), which are the images `ids` (B,) of the split. Holes
        have the value `fill` (C,), by default 0.
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
    """Crops of `pixels` (B, C, H, W), padded by `shift` pixels with their edge values, at `offsets`
    (B, 2) in 0..2 shift.
    """
    count, channels, height, width = pixels.shape
    rows = _clamped(offsets[:, :1] - shift, height)
    columns = _clamped(offsets[:, 1:] - shift, width)
    # one index per pixel, the same for all channels
    flat = (rows[:, :, None] * width + columns[:, None, :]).reshape(count, 1, -1)
    shifted = pixels.flatten(2).gather(2, flat.expand(-1, channels, -1))
    return shifted.reshape(pixels.shape)


def _clamped(starts: Tensor, size: int) -> Tensor:
    """(B, size): for each of `starts` (B, 1) the `size` positions from there on, within the
    image.
    """
    return (starts + torch.arange(size, device=starts.device)).clamp_(0, size - 1)


def _with_holes(pixels: Tensor, centres: Tensor, side: int, fill: Tensor | None) -> Tensor:
    """`pixels` (B, C, H, W) with a square hole around `centres` (B, 2), of value `fill` (C,)."""
    height, width = pixels.shape[2:]
    rows = (torch.arange(height, device=pixels.device) - centres[:, :1]).abs() < side / 2
    columns = (torch.arange(width, device=pixels.device) - centres[:, 1:]).abs() < side / 2
    hole = (rows[:, :, None] & columns[:, None, :])[:, None]
    value = torch.zeros(pixels.shape[1]) if fill is None else fill
    return torch.where(hole, value.to(pixels)[None, :, None, None], pixels)


@dataclass(frozen=True)
class Augmentation:
    """Horizontal flips, crops shifted by at most `shift` pixels (edges repeated), and a square hole
    of side `cutout` pixels.

    With `flip` each image is mirrored by chance in every view; `alternate` mirrors it in exactly
    one of every two views, so that no image is seen twice in a row as it was (Jordan 2024).
    """

    flip: bool | Literal["alternate"] = False
    shift: int = 0
    cutout: int = 0

    @property
    def active(self) -> bool:
        """True when it changes anything."""
        return bool(self.flip) or self.shift > 0 or self.cutout > 0

    def view(self, count: int, side: tuple[int, int], seed: int, number: int) -> View:
        """View `number` of a split of `count` images of `side` (H, W)."""
        generator = stream("view", seed, number)
        flips = offsets = holes = None
        if self.flip == "alternate":
            pair, second = divmod(number, 2)
            flips = torch.rand(count, generator=stream("flips", seed, pair)) < 0.5
            flips ^= bool(second)
        elif self.flip:
            flips = torch.rand(count, generator=generator) < 0.5
        if self.shift:
            offsets = torch.randint(0, 2 * self.shift + 1, (count, 2), generator=generator)
        if self.cutout:
            holes = (torch.rand(count, 2, generator=generator) * torch.tensor(side)).long()
        return View(flips, offsets, holes, self)


@dataclass(frozen=True)
class DataSet:
    """Three splits, the names of the classes, and how pixels become the input of a network."""

    name: str
    label: str
    """Its name in outputs and reports, e.g. `digits (demo)`."""
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
    """The data sets that were joined into this one."""
    notes: tuple[str, ...] = ()
    """What a reader should know of the data, a line each: files not read, the size chosen."""

    @property
    def native_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image in memory."""
        _, channels, height, width = self.train.pixels.shape
        return channels, height, width

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one image as the input of a network."""
        return self.preprocess.shape(self.native_shape)

    @property
    def fill(self) -> Tensor:
        """The value of holes in images (C,): the mean of each channel, of pixels a whole one."""
        mean = torch.tensor(self.preprocess.mean)
        is_pixels = self.preprocess.scale == PIXELS
        return (PIXELS * mean).round().long() if is_pixels else mean

    def normalised(self, pixels: Tensor) -> Tensor:
        """uint8 `pixels` (B, C, H, W) to the input of a network, float32 (B, C, h, w)."""
        return self.preprocess(pixels)

    def targets(self, split: Images) -> Tensor:
        """What the outputs of a network for `split`, one of the three, are compared with: labels
        (N,) of classes, numbers (N, K), or images (N, C, h, w).
        """
        if not isinstance(self.task, Reconstruction):
            return split.labels
        parts = (torch.arange(len(split))).split(1000)
        return torch.cat([self.normalised(split.pixels[ids]) for ids in parts])

    def sizes(self) -> dict[str, int]:
        """Samples of each split."""
        splits = {"training": self.train, "validation": self.validation, "test": self.test}
        return {name: len(split) for name, split in splits.items()}

    def summary(self) -> str:
        """`280 training, 40 validation, 80 test images of 5 classes, 64x64` (width x height);
        signals and features are samples.
        """
        counts = ", ".join(f"{count:,} {name}" for name, count in self.sizes().items())
        if self.task.metric != "accuracy":
            return f"{counts} samples"
        _, height, width = self.image_shape
        kind = "images" if self.preprocess.scale == PIXELS else "samples"
        return f"{counts} {kind} of {len(self.classes)} classes, {width}x{height}"

    def check_output(self, name: str, output: tuple[int, ...]) -> None:
        """Raises `UsageError` where a network called `name` with outputs of the shape `output` for
        one sample (1, ...) does not give what the labels are compared with.
        """
        classifies = self.task.metric == "accuracy"
        wanted = (len(self.classes),) if classifies else tuple(self.train.labels.shape[1:])
        if isinstance(self.task, Reconstruction):
            wanted = self.image_shape
        if output == (1, *wanted):
            return
        given = "x".join(map(str, output[1:])) or "one number"
        needed = "x".join(map(str, wanted))
        what = f"{needed} classes" if classifies else f"targets of {needed}"
        if classifies and output == (1, *self.image_shape):
            what += " (of an autoencoder: --task reconstruction)"
        raise UsageError(
            f"model '{name}' gives {given} for one sample, data '{self.name}' has {what}: return "
            f"(N, {', '.join(map(str, wanted))})"
            + ("; a function may take num_classes" if classifies else "")
        )

    def digest(self) -> str:
        """SHA-256 (hex) of all three splits."""
        joined = "".join(split.digest() for split in (self.train, self.validation, self.test))
        return hashlib.sha256(joined.encode()).hexdigest()

    def training_key(self) -> dict[str, object]:
        """What determines the augmented pixels of the training split: its digest and the
        augmentation, as JSON values.
        """
        return {"pixels": self.train.pixel_digest(), "augmentation": asdict(self.augmentation)}


def pixel_statistics(pixels: Tensor | FilePixels) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of uint8 `pixels` (N, C, H, W), in 0..1; the
    deviation of a constant channel is 0.001.

    For images on disk they are computed from 2,000 images, evenly spread.
    """
    if not isinstance(pixels, Tensor):
        pixels = pixels[torch.linspace(0, len(pixels) - 1, min(len(pixels), 2000)).long()]
    values = pixels.float().transpose(0, 1).flatten(1) / 255
    deviations = (max(round(v, 6), 1e-3) for v in values.std(1).tolist())
    return tuple(round(v, 6) for v in values.mean(1).tolist()), tuple(deviations)


def stratified(labels: Tensor, shares: tuple[float, ...], seed: int = 20221121) -> list[Tensor]:
    """Split the indices of `labels` (N,) into sorted parts (n,) int64, each class in proportion:
    first the rest, then one part per entry of `shares`, 0..1.

    Independent of the seed of a run: the same data always give the same split.
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
