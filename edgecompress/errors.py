"""Every error that a user can meet, in one tree; each class carries its exit code.

    EdgecompressError            1   the operation failed
    ├── UsageError               2   bad input or bad use: nothing was written
    │   └── UnknownNameError     2   a name that is not known; the nearest known names are offered
    ├── TargetMissedError        3   target missed or regression found; the best artifact is kept
    ├── EnvironmentMissingError  4   something is missing here; the message ends with the fix
    └── InterruptedRunError    130   stopped by the user; files that were complete remain so

A message is one line: the value received, what is allowed, and the fix.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class EdgecompressError(Exception):
    """The operation failed. Root of the tree; `exit_code` is what the command line returns."""

    exit_code: int = 1


class UsageError(EdgecompressError):
    """Bad input or bad use."""

    exit_code = 2


class UnknownNameError(UsageError):
    """A name that is not known; the message offers the nearest ones."""

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        names = sorted(known)
        near = difflib.get_close_matches(name, names, n=4, cutoff=0.5) or names[:8]
        question = f": did you mean {', '.join(near)}?" if names else ""
        tail = f" {hint}" if hint else ""
        super().__init__(f"unknown {kind} '{name}'{question}{tail}")


class TargetMissedError(EdgecompressError):
    """A target was missed, or a regression was found. The best artifact is kept and named."""

    exit_code = 3


class EnvironmentMissingError(EdgecompressError):
    """Something is missing on this machine; the message names the command that installs it."""

    exit_code = 4


class InterruptedRunError(EdgecompressError):
    """Stopped by the user."""

    exit_code = 130
