"""Archives of data sets: downloaded once into the cache, checked by their MD5, unpacked."""

from __future__ import annotations

import hashlib
import shutil
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from edgecompress.download import fetch
from edgecompress.errors import EnvironmentMissingError, UsageError
from edgecompress.files import cache_dir


@dataclass(frozen=True)
class Archive:
    """The source of a data set: a tar file that unpacks into `folder`, with the MD5 (hex) of each
    version that was published.
    """

    url: str
    md5: tuple[str, ...]
    folder: str


def unpacked(name: str, archive: Archive) -> Path:
    """The folder with the archive's files. The archive is downloaded and unpacked when the folder
    does not exist yet.

    Raises `EnvironmentMissingError` with the file to place and where, when it cannot be downloaded,
    and `UsageError` when its MD5 is not one of those published.
    """
    home = cache_dir() / "data"
    root = home / archive.folder
    if root.is_dir():
        return root
    packed = home / archive.url.rpartition("/")[2]
    home.mkdir(parents=True, exist_ok=True)
    if not packed.is_file():
        _download(name, archive, packed)
    _check(packed, archive)
    # unpacked elsewhere and moved, so that a folder with the final name is always complete
    with tempfile.TemporaryDirectory(dir=home) as work:
        with tarfile.open(packed) as opened:
            opened.extractall(work, filter="data")
        shutil.move(str(Path(work) / archive.folder), root)
    return root


def _check(packed: Path, archive: Archive) -> None:
    hashed = hashlib.md5(usedforsecurity=False)
    with packed.open("rb") as file:
        while block := file.read(2**20):
            hashed.update(block)
    digest = hashed.hexdigest()
    if digest not in archive.md5:
        published = " or ".join(archive.md5)
        raise UsageError(
            f"'{packed}' has MD5 {digest}, not {published}: remove it and place the file from "
            f"{archive.url}"
        )


def _download(name: str, archive: Archive, packed: Path) -> None:
    try:
        fetch(archive.url, packed)
    except OSError as error:
        raise EnvironmentMissingError(
            f"data '{name}' cannot be downloaded here: place the file {packed.name} (from "
            f"{archive.url}) at {packed}"
        ) from error
