"""How to repeat a run: its command line, when it began, and the commit of the working folder."""

from __future__ import annotations

import datetime
import shlex
import sys
from pathlib import Path

from typing_extensions import TypedDict

from edgecompress import files, git


class GitRow(TypedDict):
    """The commit of the working folder, and whether files there differed from it."""

    commit: str
    dirty: bool


class Provenance(TypedDict):
    """What `result.json` says of how a run came about; `git` is None outside of a repository."""

    command_line: str
    started: str
    git: GitRow | None


def provenance(root: Path) -> Provenance:
    """That of the run in `root`, whose log begins with its start."""
    program, *arguments = sys.argv or ["python"]
    return {
        "command_line": shlex.join([Path(program).name, *arguments]),
        "started": started(root),
        "git": git_row(Path.cwd()),
    }


def started(root: Path) -> str:
    """When the run in `root` began, for the first time: ISO 8601, UTC."""
    events = files.read_lines(root / "log.jsonl") if (root / "log.jsonl").is_file() else []
    times = [float(str(row["time"])) for row in events if "time" in row]
    now = datetime.datetime.now(datetime.timezone.utc)
    first = datetime.datetime.fromtimestamp(times[0], datetime.timezone.utc) if times else now
    return first.isoformat(timespec="seconds")


def git_row(folder: Path) -> GitRow | None:
    """The commit of `folder`; None where it is no repository, or git is not installed."""
    commit = git.head_commit(folder)
    return None if commit is None else {"commit": commit, "dirty": git.is_dirty(folder)}
