"""How to repeat a run."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from edgecompress.run.directory import RunDirectory
from edgecompress.run.provenance import git_row, provenance, started


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def test_the_commit_and_whether_files_differ(tmp_path: Path) -> None:
    assert git_row(tmp_path) is None
    git(tmp_path, "init")
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-m", "first")
    row = git_row(tmp_path)
    assert row is not None
    assert len(row["commit"]) == 40
    assert not row["dirty"]
    (tmp_path / "a").write_text("2")
    row = git_row(tmp_path)
    assert row is not None
    assert row["dirty"]


def test_the_command_line_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/usr/bin/edgecompress", "train", "my net.py:make"])
    assert provenance(tmp_path)["command_line"] == "edgecompress train 'my net.py:make'"


def test_a_resumed_run_began_when_it_first_did(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.log("start")
    first = started(tmp_path)
    run.log("start")
    assert started(tmp_path) == first
    assert first.endswith("+00:00")
