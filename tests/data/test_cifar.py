"""CIFAR's binary archives, read from small files of the same layout."""

from __future__ import annotations

import hashlib
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgecompress.data import cifar, load_data
from edgecompress.errors import EnvironmentMissingError, UsageError


def make_archive(folder: Path, name: str, each: int = 20) -> tuple[Path, np.ndarray]:
    """A small archive with the layout of the real one: `each` images per class and file, and
    the records of its test file.
    """
    archive = cifar.ARCHIVES[name]
    root = folder / archive.archive.folder
    root.mkdir(parents=True)
    generator = np.random.default_rng(0)
    records = np.zeros((0, 0), dtype=np.uint8)
    for part in (*archive.train, archive.test):
        labels = np.tile(np.arange(10, dtype=np.uint8), each)
        pixels = generator.integers(0, 256, (len(labels), cifar.PIXELS), dtype=np.uint8)
        records = np.concatenate([*[labels[:, None]] * archive.labels, pixels], axis=1)
        (root / part).write_bytes(records.tobytes())
    (root / archive.names).write_text("\n".join(f"class {number}" for number in range(10)) + "\n\n")
    packed = folder / archive.archive.url.rpartition("/")[2]
    with tarfile.open(packed, "w:gz") as opened:
        opened.add(root, archive.archive.folder)
    return packed, records


def moved(kind: cifar.Cifar, url: str, *md5: str) -> cifar.Cifar:
    """The same data at another address."""
    return replace(kind, archive=replace(kind.archive, url=url, md5=md5 or kind.archive.md5))


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_the_archive_is_downloaded_once_and_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed, records = make_archive(tmp_path / "source", name)
    md5 = hashlib.md5(packed.read_bytes()).hexdigest()
    monkeypatch.setitem(cifar.ARCHIVES, name, moved(cifar.ARCHIVES[name], packed.as_uri(), md5))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = load_data(name)
    parts = len(cifar.ARCHIVES[name].train)
    assert (len(data.train), len(data.validation), len(data.test)) == (180 * parts, 20 * parts, 200)
    labels = cifar.ARCHIVES[name].labels
    assert np.array_equal(data.test.pixels.reshape(200, -1).numpy(), records[:, labels:])
    assert np.array_equal(data.test.labels.numpy(), records[:, labels - 1])
    assert data.classes[3] == "class 3"
    packed.unlink()
    assert load_data(name).digest() == data.digest(), "the second time nothing is downloaded"


def test_without_a_network_the_file_and_its_place_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = moved(cifar.ARCHIVES["cifar10"], "http://127.0.0.1:9/cifar-10-binary.tar.gz")
    monkeypatch.setitem(cifar.ARCHIVES, "cifar10", nowhere)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(
        EnvironmentMissingError,
        match=r"place the file cifar-10-binary\.tar\.gz .* at .*edgecompress/data",
    ):
        load_data("cifar10")
    assert not list((tmp_path / "edgecompress" / "data").iterdir()), "no partial file is left"
    (tmp_path / "edgecompress" / "data" / "cifar-10-binary.tar.gz").write_bytes(b"something else")
    with pytest.raises(UsageError, match="has MD5"):
        load_data("cifar10")
