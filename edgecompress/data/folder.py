"""`folder:DIR`: a tree of images with one folder per class (the layout of torchvision's
ImageFolder).

Either `DIR/train` with `DIR/test` or `DIR/val`, or one tree that is split here into 70 / 10 / 20 %,
always in the same way. With two splits on disk, a fixed tenth of `train` is the validation split,
and the one called test (else val) is the test split.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from edgecompress.data.images import Augmentation, DataSet, Images, pixel_statistics, stratified
from edgecompress.data.lazy import FilePixels
from edgecompress.data.preprocess import Preprocess
from edgecompress.errors import UsageError

IN_MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4
"""Bytes of decoded images above which those of a folder stay on disk and are decoded batch by
batch: a quarter of the machine's memory.
"""
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif")


CORRUPT = (
    OSError,
    UnidentifiedImageError,
    SyntaxError,
    ValueError,
    Image.DecompressionBombError,
)
"""What PIL raises for files that it cannot decode."""


@dataclass(frozen=True)
class _Reader:
    """How images are read: with the shorter side at most `size`, if given, and corrupt ones skipped
    or refused.
    """

    size: int | None
    skip_bad: bool


def load_folder(
    directory: str, *, image_size: int | None = None, skip_bad: bool = False
) -> DataSet:
    """The data set below `directory`; `image_size` is the side of the stored squares, in pixels.

    Raises `UsageError` for a missing, empty or one-class tree, for corrupt images unless
    `skip_bad`, and for images of mixed sizes unless `image_size` is given.
    """
    root = Path(directory).expanduser()
    if not root.is_dir():
        raise UsageError(
            f"data folder '{directory}' does not exist: give the folder that holds the "
            "classes, or train/ and test/"
        )
    reader = _Reader(image_size, skip_bad)
    if (root / "train").is_dir():
        classes, splits, skipped = _two_trees(root, reader)
    else:
        classes, splits, skipped = _one_tree(root, reader)
    _check(root, classes, splits)

    train, validation, test = splits
    return DataSet(
        name=f"folder:{root}",
        label=f"folder:{root.name}",
        classes=tuple(classes),
        train=train,
        validation=validation,
        test=test,
        preprocess=Preprocess(*pixel_statistics(train.pixels)),
        augmentation=Augmentation(flip=True, shift=max(1, train.pixels.shape[-1] // 8)),
        skipped=tuple(skipped),
    )


def _two_trees(root: Path, reader: _Reader) -> tuple[list[str], list[Images], list[str]]:
    """Classes, splits and skipped files of `train/` with `test/` or `val/`."""
    held_out = next((root / name for name in ("test", "val") if (root / name).is_dir()), None)
    if held_out is None:
        raise UsageError(
            f"'{root}' has train/ but neither test/ nor val/: add one, or drop the train/ level"
        )
    classes = _classes(root / "train")
    if _classes(held_out) != classes:
        raise UsageError(
            f"'{root / 'train'}' and '{held_out}' have different classes: they must be the same"
        )
    training, bad = _images(_files(root / "train", classes), reader)
    test, bad_test = _images(_files(held_out, classes), reader)
    train, validation = (training.rows(index) for index in stratified(training.labels, (0.1,)))
    return classes, [train, validation, test], [*bad, *bad_test]


def _one_tree(root: Path, reader: _Reader) -> tuple[list[str], list[Images], list[str]]:
    """Classes, splits and skipped files of a tree that is split here."""
    classes = _classes(root)
    images, bad = _images(_files(root, classes), reader)
    splits = [images.rows(index) for index in stratified(images.labels, (0.1, 0.2))]
    return classes, splits, bad


def _check(root: Path, classes: list[str], splits: list[Images]) -> None:
    for name, split in zip(("training", "validation", "test"), splits, strict=True):
        if len(split.labels.unique()) < len(classes):
            raise UsageError(
                f"the {name} split of '{root}' lacks a class: add images (at least 10 per class)"
            )
    train, _, test = splits
    if test.pixels.shape[1:] != train.pixels.shape[1:]:
        raise UsageError(f"training and test images of '{root}' differ in size: pass --image-size")


# -- Files


def _classes(root: Path) -> list[str]:
    names = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not names:
        raise UsageError(
            f"folder '{root}' has no class folders: put each class's images into a folder of "
            "its own"
        )
    if len(names) == 1:
        raise UsageError(
            f"folder '{root}' has one class only ('{names[0]}'): at least 2 are needed"
        )
    return names


def _files(root: Path, classes: list[str]) -> list[tuple[Path, int]]:
    """Every image file below `root` with the number of its class, in a fixed order."""
    labelled = []
    for label, name in enumerate(classes):
        files = sorted(p for p in (root / name).rglob("*") if p.suffix.lower() in SUFFIXES)
        if not files:
            raise UsageError(
                f"class folder '{root / name}' holds no image: allowed are {', '.join(SUFFIXES)}"
            )
        labelled += [(path, label) for path in files]
    return labelled


# -- Images


def _images(files: list[tuple[Path, int]], reader: _Reader) -> tuple[Images, list[str]]:
    """The images of `files` with their labels, and the files that were skipped."""
    size = reader.size
    if size is not None and len(files) * 3 * size**2 > IN_MEMORY:
        pixels = FilePixels([path for path, _ in files], size, partial(_read_square, size=size))
        return Images(pixels, torch.tensor([label for _, label in files])), []

    images, labels, bad = _decoded(files, size)
    if bad and not reader.skip_bad:
        raise UsageError(
            f"{len(bad)} corrupt image(s), first '{bad[0]}': fix or remove them, or pass --skip-bad"
        )
    if not images:
        raise UsageError(
            f"no readable image among {len(files)} file(s): the first is '{files[0][0]}'"
        )
    return Images(torch.stack(_of_one_size(images, size)), torch.tensor(labels)), bad


def _decoded(
    files: list[tuple[Path, int]], size: int | None
) -> tuple[list[Tensor], list[int], list[str]]:
    """Images (3, H, W) and labels of the files that can be read, and the names of the others."""
    images: list[Tensor] = []
    labels: list[int] = []
    bad: list[str] = []
    for path, label in files:
        try:
            images.append(_read(path, size))
            labels.append(label)
        except CORRUPT:
            bad.append(str(path))
    return images, labels, bad


def _of_one_size(images: list[Tensor], size: int | None) -> list[Tensor]:
    """Images (3, H, W) of one shape: given `size`, small ones among large ones are enlarged."""
    sizes = {tuple(image.shape[1:]) for image in images}
    if len(sizes) == 1:
        return images
    if size is None:
        raise UsageError(
            f"images have {len(sizes)} different sizes, e.g. {sorted(sizes)[:2]}: pass "
            "--image-size 32 or 224"
        )
    return [_enlarged(image, size) for image in images]


def _read_square(path: Path, size: int) -> Tensor:
    """One image as uint8 (3, size, size). Raises `UsageError` for a corrupt one."""
    try:
        return _enlarged(_read(path, size), size)
    except CORRUPT as error:
        raise UsageError(
            f"image '{path}' is corrupt: fix or remove it (--skip-bad needs data that fit "
            "into memory)"
        ) from error


def _read(path: Path, size: int | None) -> Tensor:
    """One image as uint8 (3, H, W); with `size`, a larger one becomes (3, size, size)."""
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    if size is not None and max(image.size) > size:
        image = _square(image, size)
    return _pixels(image)


def _enlarged(pixels: Tensor, size: int) -> Tensor:
    """uint8 (3, H, W) whose sides are at most `size`, as (3, size, size)."""
    if tuple(pixels.shape[1:]) == (size, size):
        return pixels
    return _pixels(_square(Image.fromarray(pixels.permute(1, 2, 0).numpy()), size))


def _square(image: Image.Image, size: int) -> Image.Image:
    """`image` with its shorter side resized to `size`, and the central square cut out."""
    scale = size / min(image.size)
    width = max(size, round(image.width * scale))
    height = max(size, round(image.height * scale))
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    left = (width - size) // 2
    top = (height - size) // 2
    return resized.crop((left, top, left + size, top + size))


def _pixels(image: Image.Image) -> Tensor:
    """An RGB image as uint8 (3, H, W)."""
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)
