"""What git says of a folder: its commit, and whether files differ from it."""

from __future__ import annotations

import subprocess
from pathlib import Path


def head_commit(folder: Path) -> str | None:
    """The commit (hex) that is checked out in `folder`; None where it is no repository, or git is
    not installed.
    """
    commit = _git(folder, "rev-parse", "HEAD")
    return None if commit is None else commit.strip() or None


def is_dirty(folder: Path) -> bool:
    """Do tracked files in the repository of `folder` differ from its commit?"""
    return bool(_git(folder, "status", "--porcelain", "-uno"))


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
