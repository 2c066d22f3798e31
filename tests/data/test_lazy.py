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


def test_images_on_disk_are_those_in_memory(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_memory = load_data(f"folder:{photos}", image_size=32)
    monkeypatch.setattr(folder, "IN_MEMORY", 10_000)
    on_disk = load_data(f"folder:{photos}", image_size=32)
    assert isinstance(on_disk.train.pixels, FilePixels)
    assert on_disk.image_shape == in_memory.image_shape == (3, 32, 32)
    for split in ("train", "validation", "test"):
        assert torch.equal(getattr(on_disk, split).pixels[:], getattr(in_memory, split).pixels)
        assert torch.equal(getattr(on_disk, split).labels, getattr(in_memory, split).labels)
    assert on_disk.preprocess == in_memory.preprocess
    settings = FitSettings(1, batch_size=16)
    device = torch.device("cpu")
    for one, other in zip(
        batches(on_disk, settings, device, 3, 1),
        batches(in_memory, settings, device, 3, 1),
        strict=True,
    ):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)


def test_the_digest_follows_the_files(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    indices = list(torch.randperm(100).split(7))
    assert all(
        torch.equal(rows.flatten(), ids)
        for rows, ids in zip(fetched(values, indices), indices, strict=True)
    )
