"""Image files: orientation, 16 bits, sizes from headers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgecompress import pictures

ORIENTATION = 0x0112


def gradient(height: int = 6, width: int = 10) -> np.ndarray:
    """Grey values (H, W) that no turn or mirror leaves as they are."""
    return (np.arange(height * width) * 255 // (height * width)).reshape(height, width)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_read_upright(orientation: int, tmp_path: Path) -> None:
    """What a camera stores, found by searching the eight turns, against Pillow's own reading."""
    upright = Image.fromarray(gradient().astype(np.uint8))
    turns = [None, *Image.Transpose]
    stored = None
    for turn in turns:
        image = upright if turn is None else upright.transpose(turn)
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        image.save(tmp_path / "turned.png", exif=exif)
        if np.array_equal(np.asarray(pictures.read(tmp_path / "turned.png", "L")), gradient()):
            stored = turn
            break
    else:
        pytest.fail("no turn of the image is read upright")
    assert (stored is None) == (orientation == 1)
    assert pictures.size_of(tmp_path / "turned.png") == (10, 6)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_16_bits_become_8(suffix: str, tmp_path: Path) -> None:
    values = (gradient() * 257).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / f"deep{suffix}")
    read = np.asarray(pictures.read(tmp_path / f"deep{suffix}", "L"))
    np.testing.assert_array_equal(read, gradient())
    colour = np.asarray(pictures.read(tmp_path / f"deep{suffix}"))
    np.testing.assert_array_equal(colour, np.stack([gradient()] * 3, 2))


def test_pixels_of_unknown_range_are_refused(tmp_path: Path) -> None:
    Image.fromarray(gradient().astype(np.float32) / 255).save(tmp_path / "float.tif")
    with pytest.raises(ValueError, match="mode F: give 8 or 16 bits"):
        pictures.read(tmp_path / "float.tif")
    Image.fromarray(gradient().astype(np.int32) * 10**6).save(tmp_path / "wide.tif")
    with pytest.raises(ValueError, match="mode I: give 8 or 16 bits"):
        pictures.read(tmp_path / "wide.tif")
    Image.fromarray(gradient().astype(np.int32)).save(tmp_path / "narrow.tif")
    with pytest.raises(ValueError, match="up to 250: white is not known"):
        pictures.read(tmp_path / "narrow.tif")


def test_names_decide_what_is_an_image(tmp_path: Path) -> None:
    for name in ("a.JPG", "b.png", "c.HEIC", "d", ".e.png"):
        (tmp_path / name).write_bytes(b"")
    images, others = pictures.sorted_pictures(tmp_path)
    assert [path.name for path in images] == ["a.JPG", "b.png"]
    assert pictures.counted(others) == "1 .HEIC, 1 d"
