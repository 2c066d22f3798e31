"""`folder:DIR`: a tree of images with one folder per class (the layout of torchvision's
ImageFolder).

`DIR/train`, `DIR/val` and `DIR/test` are the three splits. With train and one of the others, a
fixed tenth of train is the validation split and the other is the test split. A tree without these
levels is split here into 70 / 10 / 20 %, always in the same way.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image
from torch import Tensor

from edgecompress import pictures
from edgecompress.data.images import Augmentation, DataSet, Images, pixel_statistics, stratified
from edgecompress.data.lazy import FilePixels
from edgecompress.data.preprocess import Preprocess
from edgecompress.errors import UsageError

IN_MEMORY = psutil.virtual_memory().total // 4
"""Bytes of decoded images above which those of a folder stay on disk and are decoded batch by
batch: a quarter of the machine's memory.
"""
DEFAULT_SIZE = 224
"""Side in pixels at which images of several sizes are read, where the network has no own."""
LARGEST_AS_IS = 224
"""Images of one size whose sides are at most so many pixels are read as they are."""
VALIDATION = ("val", "valid", "validation")
"""Names of the folder of the validation split."""
Labelled = tuple[Path, int]
"""An image file, and the number of its class."""


@dataclass(frozen=True)
class _Reader:
    """How images are read: with the shorter side at most `size`, if given, and corrupt ones skipped
    or refused.
    """

    size: int | None
    skip_bad: bool


@dataclass(frozen=True)
class _Tree:
    """The files of a data set: its classes, the images of each part on disk, files that are no
    images, and what a reader should know.
    """

    classes: list[str]
    parts: dict[str, list[Labelled]]
    others: list[Path]
    notes: tuple[str, ...] = ()


def load_folder(
    directory: str,
    *,
    image_size: int | None = None,
    skip_bad: bool = False,
    default_size: int = DEFAULT_SIZE,
) -> DataSet:
    """The data set below `directory`; `image_size` is the side of the stored squares, in pixels.

    Without it, images of one size with sides of at most `LARGEST_AS_IS` are read as they are,
    others as squares of side `default_size`. Raises `UsageError` for a missing, empty or one-class
    tree, and for corrupt images unless `skip_bad`.
    """
    root = Path(directory).expanduser()
    if not root.is_dir():
        raise UsageError(
            f"data folder '{directory}' does not exist: give the folder that holds the "
            "classes, or train/ and test/"
        )
    tree = _two_trees(root) if (root / "train").is_dir() else _one_tree(root)
    notes = [*tree.notes, *_unread(tree.others)]
    dark = pictures.faint([path for files in tree.parts.values() for path, _ in files])
    if dark is not None:
        notes.append(dark)
    if image_size is None:
        image_size, note = _size_for(tree.parts.values(), default_size)
        notes += note
    splits, skipped = _splits(tree, _Reader(image_size, skip_bad))
    _check(root, tree.classes, splits)

    train, validation, test = splits
    return DataSet(
        name=f"folder:{root}",
        label=f"folder:{root.name}",
        classes=tuple(tree.classes),
        train=train,
        validation=validation,
        test=test,
        preprocess=Preprocess(*pixel_statistics(train.pixels)),
        augmentation=Augmentation(flip="alternate", shift=max(1, train.pixels.shape[-1] // 8)),
        skipped=tuple(skipped),
        notes=tuple(notes),
    )


def _two_trees(root: Path) -> _Tree:
    """The files of `train/` with a validation split, a test split, or both."""
    validation = next((root / name for name in VALIDATION if (root / name).is_dir()), None)
    test = root / "test" if (root / "test").is_dir() else None
    if test is None and validation is None:
        raise UsageError(
            f"'{root}' has train/ but neither test/ nor val/: add one, or drop the train/ level"
        )
    classes = _classes(root / "train")
    places = {"train": root / "train"}
    notes: tuple[str, ...] = ()
    if validation is not None and test is not None:
        places |= {"validation": validation, "test": test}
    else:
        held_out = test or validation or root
        places |= {"test": held_out}
        notes = (f"{held_out.name}/ is the test split; a tenth of train/ is for validation",)
    parts: dict[str, list[Labelled]] = {}
    others: list[Path] = []
    for name, place in places.items():
        if _classes(place) != classes:
            raise UsageError(
                f"'{root / 'train'}' and '{place}' have different classes: they must be the same"
            )
        parts[name], rest = _files(place, classes)
        others += rest
    return _Tree(classes, parts, others, notes)


def _one_tree(root: Path) -> _Tree:
    """The files of a tree that is split here."""
    classes = _classes(root)
    images, others = _files(root, classes)
    return _Tree(classes, {"all": images}, others)


def _splits(tree: _Tree, reader: _Reader) -> tuple[list[Images], list[str]]:
    """Training, validation and test split, and the corrupt files that were skipped."""
    read = {name: _images(files, reader) for name, files in tree.parts.items()}
    parts = _alike({name: images for name, (images, _) in read.items()}, reader.size)
    skipped = [name for _, bad in read.values() for name in bad]
    if "all" in parts:
        images = parts["all"]
        return [images.rows(index) for index in stratified(images.labels, (0.1, 0.2))], skipped
    if "validation" in parts:
        return [parts["train"], parts["validation"], parts["test"]], skipped
    train = parts["train"]
    fitted, held = (train.rows(index) for index in stratified(train.labels, (0.1,)))
    return [fitted, held, parts["test"]], skipped


def _alike(parts: dict[str, Images], size: int | None) -> dict[str, Images]:
    """The parts with images of one shape: where one part holds small images and another large
    ones, the small are enlarged.
    """
    if size is None or len({images.pixels.shape[1:] for images in parts.values()}) == 1:
        return parts
    return {
        name: replace(images, pixels=torch.stack([_enlarged(one, size) for one in images.pixels]))
        if isinstance(images.pixels, Tensor)
        else images
        for name, images in parts.items()
    }


def _unread(others: Sequence[Path]) -> list[str]:
    """A line for the files of class folders that are no images."""
    if not others:
        return []
    allowed = ", ".join(pictures.SUFFIXES)
    return [f"not read: {pictures.counted(others)} (images are {allowed})"]


def _size_for(parts: Collection[list[Labelled]], default_size: int) -> tuple[int | None, list[str]]:
    """The side at which images are read, None for as they are, and a line that says so."""
    sizes = {size for files in parts for path, _ in files for size in _known_size(path)}
    smallest, largest = min(sizes, default=(0, 0)), max(sizes, default=(0, 0))
    if len(sizes) <= 1 and max(largest) <= LARGEST_AS_IS:
        return None, []
    shown = "x".join(map(str, largest))
    if len(sizes) > 1:
        shown = f"{len(sizes)} sizes, {'x'.join(map(str, smallest))} to {shown}"
    side = f"{default_size}x{default_size}"
    return default_size, [f"images of {shown} are read as {side}: --image-size for another"]


def _known_size(path: Path) -> list[tuple[int, int]]:
    """(width, height) of an image, nothing for one that is corrupt."""
    try:
        return [pictures.size_of(path)]
    except pictures.UNREADABLE:
        return []


def _check(root: Path, classes: list[str], splits: list[Images]) -> None:
    for name, split in zip(("training", "validation", "test"), splits, strict=True):
        there = set(split.labels.unique().tolist())
        absent = [f"'{one}'" for number, one in enumerate(classes) if number not in there]
        if absent:
            more = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
            raise UsageError(
                f"the {name} split of '{root}' lacks images of {', '.join(absent[:3])}{more}: add "
                "some (at least 10 per class)"
            )


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


def _files(root: Path, classes: list[str]) -> tuple[list[Labelled], list[Path]]:
    """Every image file below `root` with the number of its class, in a fixed order, and the files
    that are no images.
    """
    labelled: list[Labelled] = []
    others: list[Path] = []
    for label, name in enumerate(classes):
        images, rest = pictures.sorted_pictures(root / name)
        if not images:
            raise UsageError(
                f"class folder '{root / name}' holds no image: allowed are "
                f"{', '.join(pictures.SUFFIXES)}"
            )
        labelled += [(path, label) for path in images]
        others += rest
    return labelled, others


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
        except pictures.UNREADABLE:
            bad.append(str(path))
    return images, labels, bad


def _of_one_size(images: list[Tensor], size: int | None) -> list[Tensor]:
    """Images (3, H, W) of one shape: given `size`, small ones among large ones are enlarged."""
    sizes = {tuple(image.shape[1:]) for image in images}
    if len(sizes) == 1:
        return images
    return [_enlarged(image, size or DEFAULT_SIZE) for image in images]


def _read_square(path: Path, size: int) -> Tensor:
    """One image as uint8 (3, size, size). Raises `UsageError` for a corrupt one."""
    try:
        return _enlarged(_read(path, size), size)
    except pictures.UNREADABLE as error:
        raise UsageError(
            f"image '{path}' is corrupt: fix or remove it (--skip-bad needs data that fit "
            "into memory)"
        ) from error


def _read(path: Path, size: int | None) -> Tensor:
    """One image as uint8 (3, H, W); with `size`, a larger one becomes (3, size, size)."""
    image = pictures.read(path)
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
