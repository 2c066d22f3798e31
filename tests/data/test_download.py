"""Archives: checked by their MD5, unpacked completely or not at all."""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path

import pytest

from edgecompress.data.download import Archive, unpacked
from edgecompress.errors import EnvironmentMissingError, UsageError


def packed(folder: Path) -> Path:
    source = folder / "set"
    source.mkdir()
    (source / "a.txt").write_text("content")
    path = folder / "set.tgz"
    with tarfile.open(path, "w:gz") as opened:
        opened.add(source, "set")
    return path


def test_an_archive_is_downloaded_once_and_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = packed(tmp_path)
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    archive = Archive(path.as_uri(), ("0" * 32, md5), "set")
    root = unpacked("set", archive)
    assert (root / "a.txt").read_text() == "content"
    path.unlink()
    assert unpacked("set", archive) == root


def test_an_archive_with_another_md5_is_refused_and_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    archive = Archive(packed(tmp_path).as_uri(), ("0" * 32, "1" * 32), "set")
    with pytest.raises(UsageError, match=rf"has MD5 .*, not {'0' * 32} or {'1' * 32}: remove it"):
        unpacked("set", archive)
    assert not (tmp_path / "cache" / "edgecompress" / "data" / "set").exists()


def test_a_failed_download_leaves_no_partial_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    archive = Archive((tmp_path / "absent.tgz").as_uri(), (), "set")
    with pytest.raises(EnvironmentMissingError, match=r"place the file absent\.tgz"):
        unpacked("set", archive)
    assert not list((tmp_path / "cache" / "edgecompress" / "data").iterdir())
