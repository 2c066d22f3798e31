"""Images that stay on disk give what images in memory give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edgecompress.data import folder, load_data
from edgecompress.data.lazy import FilePixels, fetched
from edgecompress.errors import UsageError
from edgecompress.train.batches import batches
from edgecompress.train.settings import FitSettings


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for label in ("a", "b"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(40):
            pixels = generator.integers(0, 256, (40 + number % 5, 48, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / label / f"{number}.png")
    return tmp_path / "photos"


def test_they_are_the_same_images(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = load_data(f"folder:{photos}", image_size=32)
    monkeypatch.setattr(folder, "IN_MEMORY", 10_000)
    outside = load_data(f"folder:{photos}", image_size=32)
    assert isinstance(outside.train.pixels, FilePixels)
    assert outside.image_shape == inside.image_shape == (3, 32, 32)
    for split in ("train", "validation", "test"):
        assert torch.equal(getattr(outside, split).pixels[:], getattr(inside, split).pixels)
        assert torch.equal(getattr(outside, split).labels, getattr(inside, split).labels)
    assert outside.preprocess == inside.preprocess
    settings = FitSettings(1, batch_size=16)
    device = torch.device("cpu")
    for one, other in zip(
        batches(outside, settings, device, 3, 1),
        batches(inside, settings, device, 3, 1),
        strict=True,
    ):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)


def test_what_they_are_is_known_without_reading_them(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "IN_MEMORY", 10_000)
    before = load_data(f"folder:{photos}", image_size=32).digest()
    assert load_data(f"folder:{photos}", image_size=32).digest() == before
    Image.new("RGB", (40, 48)).save(photos / "a" / "0.png")
    assert load_data(f"folder:{photos}", image_size=32).digest() != before


def test_a_corrupt_image_is_named(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "IN_MEMORY", 10_000)
    (photos / "a" / "3.png").write_bytes(b"no image")
    with pytest.raises(UsageError, match=r"3\.png' is corrupt"):
        data = load_data(f"folder:{photos}", image_size=32)
        for split in (data.train, data.validation, data.test):
            list(split.pixels.split(8))


def test_batches_come_in_order() -> None:
    values = torch.arange(100).reshape(100, 1, 1, 1)
    wanted = list(torch.randperm(100).split(7))
    assert all(
        torch.equal(rows.flatten(), ids)
        for rows, ids in zip(fetched(values, wanted), wanted, strict=True)
    )
