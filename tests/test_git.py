"""What git says of a folder."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from edgecompress import git


def call(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def test_the_commit_and_whether_files_differ(tmp_path: Path) -> None:
    assert git.head_commit(tmp_path) is None
    call(tmp_path, "init")
    assert git.head_commit(tmp_path) is None, "nothing is committed"
    (tmp_path / "a").write_text("1")
    call(tmp_path, "add", "a")
    call(tmp_path, "commit", "-m", "first")
    assert len(git.head_commit(tmp_path) or "") == 40
    assert not git.is_dirty(tmp_path)
    (tmp_path / "a").write_text("2")
    assert git.is_dirty(tmp_path)


def test_without_git_nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git.head_commit(tmp_path) is None
