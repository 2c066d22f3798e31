"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): the authors' binary archives, downloaded once, checked, and read without pickle.

50,000 training images (a fixed tenth of each class is the validation split) and 10,000 test images, 32×32 RGB.
"""

from __future__ import annotations

import hashlib
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from edgecompress.data.images import Augmentation, DataSet, Images, channel_statistics, stratified
from edgecompress.data.preprocess import Preprocess
from edgecompress.errors import EnvironmentMissingError, UsageError
from edgecompress.files import cache_dir

PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class Archive:
    """Where a data set comes from and what is in it; a record is `labels` bytes, the last of them the class, then the pixels."""

    url: str
    md5: str
    folder: str
    train: tuple[str, ...]
    test: str
    names: str
    labels: int


ARCHIVES = {
    "cifar10": Archive(
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530", "cifar-10-batches-bin",
        tuple(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin", "batches.meta.txt", 1,
    ),
    "cifar100": Archive(
        "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8", "cifar-100-binary",
        ("train.bin",), "test.bin", "fine_label_names.txt", 2,
    ),
}  # fmt: skip


def load_cifar(name: str) -> DataSet:
    """`cifar10` or `cifar100`. Raises `EnvironmentMissingError` with the file to place and where, when it cannot be downloaded."""
    archive = ARCHIVES[name]
    root = _unpacked(name, archive)
    whole = _read([root / part for part in archive.train], archive)
    test = _read([root / archive.test], archive)
    classes = tuple(line.strip() for line in (root / archive.names).read_text().splitlines() if line.strip())
    kept, held = stratified(whole.labels, (0.1,))
    train, validation = (Images(whole.pixels[i], whole.labels[i]) for i in (kept, held))
    preprocess = Preprocess(*channel_statistics(train.pixels))
    return DataSet(name, name, classes, train, validation, test, preprocess, Augmentation(flip=True, shift=4))


def _read(paths: list[Path], archive: Archive) -> Images:
    size = archive.labels + PIXELS
    raw = np.concatenate([np.fromfile(path, dtype=np.uint8) for path in paths])
    if raw.size % size or not raw.size:
        raise UsageError(f"'{paths[0].parent}' is damaged: remove that folder and run again")
    records = torch.from_numpy(raw).reshape(-1, size)
    return Images(records[:, archive.labels :].reshape(-1, 3, 32, 32).contiguous(), records[:, archive.labels - 1].long())


def _unpacked(name: str, archive: Archive) -> Path:
    """The folder of the archive's files: as it was unpacked before, or from the archive, which is downloaded if it is not there."""
    home = cache_dir() / "data"
    root = home / archive.folder
    if root.is_dir():
        return root
    packed = home / archive.url.rpartition("/")[2]
    home.mkdir(parents=True, exist_ok=True)
    if not packed.is_file():
        _download(name, archive, packed)
    digest = hashlib.md5(packed.read_bytes(), usedforsecurity=False).hexdigest()
    if digest != archive.md5:
        raise UsageError(f"'{packed}' has MD5 {digest}, not {archive.md5}: remove it and place the file from {archive.url}")
    with tempfile.TemporaryDirectory(dir=home) as work:
        with tarfile.open(packed) as opened:
            opened.extractall(work, filter="data")
        shutil.move(str(Path(work) / archive.folder), root)
    return root


def _download(name: str, archive: Archive, packed: Path) -> None:
    part = packed.with_suffix(".part")
    try:
        with urllib.request.urlopen(archive.url, timeout=30) as answer, part.open("wb") as file:
            shutil.copyfileobj(answer, file)
    except (urllib.error.URLError, OSError) as error:
        part.unlink(missing_ok=True)
        raise EnvironmentMissingError(
            f"data '{name}' cannot be downloaded here: place the file {packed.name} (from {archive.url}) at {packed}"
        ) from error
    part.replace(packed)
