"""Image files as phones, scanners and people make them: which are read, upright, in 8 bits.

The base install reads images too (`predict` on a device), so this needs Pillow and numpy only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif")
"""Suffixes of the files that are read, in any case."""
UNREADABLE = (
    OSError,
    UnidentifiedImageError,
    SyntaxError,
    ValueError,
    Image.DecompressionBombError,
)
"""What `read` raises for files that cannot be decoded."""
FULL_SCALE = 65535
"""White in 16 bits."""
SAMPLED = 64
"""Images that are looked at to know their range."""
TURNED = (5, 6, 7, 8)
"""EXIF orientations (tag 274) that exchange width and height."""
ORIENTATION = 274


def read(path: Path, mode: str = "RGB") -> Image.Image:
    """The image at `path` as it is meant to be seen, in `mode` (`RGB` or `L`), 8 bits a channel.

    EXIF's orientation is applied, and 16-bit values 0..65535 become 0..255. Raises one of
    `UNREADABLE`; `ValueError` for values of more than 16 bits, whose range is not known.
    """
    with Image.open(path) as opened:
        upright = ImageOps.exif_transpose(opened)
        return _in_8_bits(upright).convert(mode)


def size_of(path: Path) -> tuple[int, int]:
    """(width, height) of the upright image at `path`, from its header. Raises `UNREADABLE`."""
    with Image.open(path) as opened:
        width, height = opened.size
        turned = opened.getexif().get(ORIENTATION) in TURNED
    return (height, width) if turned else (width, height)


def _in_8_bits(image: Image.Image) -> Image.Image:
    """Pillow's own conversion clips a 16-bit image, which makes it white."""
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image)
    known = values.dtype.kind in "iu" and values.size
    if not known or values.min() < 0 or values.max() > FULL_SCALE:
        raise ValueError(f"pixels of mode {image.mode}: give 8 or 16 bits a channel")
    if values.dtype.itemsize > 2 and 0 < values.max() < 256:
        raise ValueError(f"pixels of mode {image.mode} up to {values.max()}: white is not known")
    scaled = (values.astype(np.float64) * (255 / FULL_SCALE)).round()
    return Image.fromarray(scaled.astype(np.uint8))


def faint(paths: Sequence[Path]) -> str | None:
    """A sentence where 16-bit images use the lower quarter of their range at most, as cameras and
    scanners of 10 to 14 bits write them: they are read as dark as they are stored. Looks at most at
    `SAMPLED` of `paths`; None where that is not so.
    """
    brightest = 0
    for path in paths[:: max(1, -(-len(paths) // SAMPLED))]:
        try:
            with Image.open(path) as opened:
                if not opened.mode.startswith("I"):
                    continue
                brightest = max(brightest, int(np.asarray(opened).max()))
        except UNREADABLE:
            continue
    if not 0 < brightest <= FULL_SCALE // 4:
        return None
    return (
        f"16-bit images reach {brightest:,} of {FULL_SCALE:,} (data of {brightest.bit_length()} "
        "bits?) and are read as dark as they are: scale them to 16 bits"
    )


def is_picture(path: Path) -> bool:
    """Does the name of `path` end like that of an image that is read?"""
    return path.suffix.lower() in SUFFIXES


def sorted_pictures(folder: Path) -> tuple[list[Path], list[Path]]:
    """(images, other files) below `folder`, each in a fixed order; hidden files are neither."""
    images: list[Path] = []
    others: list[Path] = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            (images if is_picture(path) else others).append(path)
    return images, others


def counted(others: Iterable[Path]) -> str:
    """Files that are no images, by suffix: `2 .HEIC, 1 .txt`."""
    suffixes = Counter(path.suffix or path.name for path in others)
    return ", ".join(f"{number} {suffix}" for suffix, number in suffixes.most_common())
