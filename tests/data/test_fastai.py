"""Imagenette and Imagewoof, read from small archives of the same layout."""

from __future__ import annotations

import hashlib
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgecompress.data import fastai, load_data
from edgecompress.errors import EnvironmentMissingError


def make_archive(folder: Path, name: str) -> Path:
    """Two classes with the real names, 20 images each in train/, 10 in val/, of several sizes."""
    root = folder / fastai.TREES[name].folder
    generator = np.random.default_rng(0)
    classes = ["n01440764", "n03888257"] if name == "imagenette" else ["n02086240", "n02115641"]
    for split, count in (("train", 20), ("val", 10)):
        for label in classes:
            (root / split / label).mkdir(parents=True)
            for number in range(count):
                shape = (160, 160 + 10 * (number % 3), 3)
                pixels = generator.integers(0, 256, shape, dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / label / f"{number}.JPEG")
    packed = folder / f"{fastai.TREES[name].folder}.tgz"
    with tarfile.open(packed, "w:gz") as opened:
        opened.add(root, fastai.TREES[name].folder)
    return packed


@pytest.mark.parametrize(
    ("name", "classes"),
    [("imagenette", ("tench", "parachute")), ("imagewoof", ("Shih-Tzu", "dingo"))],
)
def test_the_archive_is_downloaded_once_and_read(
    name: str, classes: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = make_archive(tmp_path, name)
    md5 = hashlib.md5(packed.read_bytes()).hexdigest()
    monkeypatch.setitem(
        fastai.TREES, name, replace(fastai.TREES[name], url=packed.as_uri(), md5=("0" * 32, md5))
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = load_data(name, image_size=64)
    assert data.classes == classes
    assert (len(data.train), len(data.validation), len(data.test)) == (36, 4, 20)
    assert data.image_shape == (3, 64, 64)
    packed.unlink()
    assert load_data(name, image_size=64).digest() == data.digest(), (
        "the second time nothing is downloaded"
    )
    assert load_data(name, default_size=32).image_shape == (3, 32, 32)
    assert load_data(name).image_shape == (3, 160, 160), "no larger than what is published"


def test_without_a_network_the_file_and_its_place_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        fastai.TREES,
        "imagewoof",
        replace(fastai.TREES["imagewoof"], url="http://127.0.0.1:9/imagewoof2-160.tgz"),
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(
        EnvironmentMissingError,
        match=r"place the file imagewoof2-160\.tgz .* at .*edgecompress/data",
    ):
        load_data("imagewoof", image_size=64)
