"""`folder:DIR`: a tree of images, a sub-folder a class (the layout of torchvision's ImageFolder).

`DIR/train` with `DIR/test` or `DIR/val`, or one tree that is split here, 70 / 10 / 20 %, always in
the same way. With only two splits on disk, validation is a fixed tenth of `train`; the split called
test (else val) is the test split.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from edgecompress.data.images import Augmentation, DataSet, Images, channel_statistics, stratified
from edgecompress.data.lazy import FilePixels
from edgecompress.data.preprocess import Preprocess
from edgecompress.errors import UsageError

IN_MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4
"""Bytes of images, as they are kept, above which a folder's stay on disk and are decoded batch by
batch.
"""
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif")


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
    found = []
    for label, name in enumerate(classes):
        files = sorted(p for p in (root / name).rglob("*") if p.suffix.lower() in SUFFIXES)
        if not files:
            raise UsageError(
                f"class folder '{root / name}' holds no image: allowed are {', '.join(SUFFIXES)}"
            )
        found += [(path, label) for path in files]
    return found


def _read(path: Path, size: int | None) -> Tensor:
    """One image as uint8 (3, H, W); with `size`, one that is larger has its shorter side resized to
    it and the middle square cut out.
    """
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    if size is not None and max(image.size) > size:
        scale = size / min(image.size)
        width, height = (max(size, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = (width - size) // 2, (height - size) // 2
        image = image.crop((left, top, left + size, top + size))
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)


def _enlarged(pixels: Tensor, size: int) -> Tensor:
    """uint8 (3, H, W) whose sides are at most `size`, as (3, size, size)."""
    if tuple(pixels.shape[1:]) == (size, size):
        return pixels
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    scale = size / min(image.size)
    image = image.resize(
        (max(size, round(image.width * scale)), max(size, round(image.height * scale))),
        Image.Resampling.BILINEAR,
    )
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return torch.from_numpy(
        np.asarray(image.crop((left, top, left + size, top + size))).copy()
    ).permute(2, 0, 1)


def _read_square(path: Path, size: int) -> Tensor:
    """One image as uint8 (3, size, size). Raises `UsageError` for a corrupt one."""
    try:
        return _enlarged(_read(path, size), size)
    except (
        OSError,
        UnidentifiedImageError,
        SyntaxError,
        ValueError,
        Image.DecompressionBombError,
    ) as error:
        raise UsageError(
            f"image '{path}' is corrupt: mend or remove it (--skip-bad needs data that fit "
            "into memory)"
        ) from error


def _images(
    files: list[tuple[Path, int]], size: int | None, skip_bad: bool, bad: list[str]
) -> Images:
    if size is not None and len(files) * 3 * size**2 > IN_MEMORY:
        return Images(
            FilePixels([path for path, _ in files], size, partial(_read_square, size=size)),
            torch.tensor([n for _, n in files]),
        )
    pixels, labels = [], []
    for path, label in files:
        try:
            pixels.append(_read(path, size))
            labels.append(label)
        except (
            OSError,
            UnidentifiedImageError,
            SyntaxError,
            ValueError,
            Image.DecompressionBombError,
        ):
            bad.append(str(path))
    if bad and not skip_bad:
        raise UsageError(
            f"{len(bad)} corrupt image(s), first '{bad[0]}': mend or remove them, or pass "
            "--skip-bad"
        )
    if not pixels:
        raise UsageError(
            f"no readable image among {len(files)} file(s): the first is '{files[0][0]}'"
        )
    sizes = {tuple(p.shape[1:]) for p in pixels}
    if (
        len(sizes) > 1 and size is not None
    ):  # small ones beside large ones: the small ones are enlarged here
        pixels = [_enlarged(p, size) for p in pixels]
    elif len(sizes) > 1:
        raise UsageError(
            f"images have {len(sizes)} different sizes, e.g. {sorted(sizes)[:2]}: pass "
            "--image-size 32 or 224"
        )
    return Images(torch.stack(pixels), torch.tensor(labels))


def load_folder(
    directory: str, *, image_size: int | None = None, skip_bad: bool = False
) -> DataSet:
    """The data set below `directory`. Raises `UsageError` for an empty or one-class tree, corrupt
    images, or mixed sizes.
    """
    root = Path(directory).expanduser()
    if not root.is_dir():
        raise UsageError(
            f"data folder '{directory}' does not exist: give the folder that holds the "
            "classes, or train/ and test/"
        )
    bad: list[str] = []
    if (root / "train").is_dir():
        other = next((root / n for n in ("test", "val") if (root / n).is_dir()), None)
        if other is None:
            raise UsageError(
                f"'{root}' has train/ but neither test/ nor val/: add one, or drop the train/ level"
            )
        classes = _classes(root / "train")
        if _classes(other) != classes:
            raise UsageError(
                f"'{root / 'train'}' and '{other}' have different classes: they must be the same"
            )
        whole = _images(_files(root / "train", classes), image_size, skip_bad, bad)
        test = _images(_files(other, classes), image_size, skip_bad, bad)
        first, second = stratified(whole.labels, (0.1,))
        parts = [whole.rows(i) for i in (first, second)]
    else:
        classes = _classes(root)
        whole = _images(_files(root, classes), image_size, skip_bad, bad)
        *parts, test = [whole.rows(i) for i in stratified(whole.labels, (0.1, 0.2))]
    for name, part in zip(("training", "validation", "test"), (*parts, test), strict=True):
        if len(part.labels.unique()) < len(classes):
            raise UsageError(
                f"the {name} split of '{root}' lacks a class: add images (at least 10 a class)"
            )
    if test.pixels.shape[1:] != parts[0].pixels.shape[1:]:
        raise UsageError(f"training and test images of '{root}' differ in size: pass --image-size")
    preprocess = Preprocess(*channel_statistics(parts[0].pixels))
    augmentation = Augmentation(flip=True, shift=max(1, parts[0].pixels.shape[-1] // 8))
    label = f"folder:{root.name}"
    train, validation = parts
    return DataSet(
        f"folder:{root}",
        label,
        tuple(classes),
        train,
        validation,
        test,
        preprocess,
        augmentation,
        tuple(bad),
    )
