"""Every error that a user can meet, in one tree; each class carries its exit code.

    EdgecompressError            1   the operation failed
    ├── UsageError               2   bad input or bad use: nothing was written
    │   ├── UnknownNameError     2   a name that is not known; the nearest known names are offered
    │   └── UnknownChoiceError   2   one of a few words was expected; all are listed
    ├── TargetMissedError        3   target missed or regression found; the best artifact is kept
    ├── EnvironmentMissingError  4   something is missing here; the message ends with the fix
    └── InterruptedRunError    130   stopped by the user; files that were complete remain so

A message is one line: the value received, what is allowed, and the fix.
"""

from __future__ import annotations

import difflib
import re
import sysconfig
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path

_NO_KERNEL = re.compile(r"Could not run '([^']+)' with arguments from the '(\w+)' backend")


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


class UnknownChoiceError(UsageError):
    """One of a few words was expected; the message lists them and offers the nearest."""

    def __init__(self, what: str, given: str, allowed: Iterable[str]) -> None:
        words = list(allowed)
        listed = ", ".join(words)
        super().__init__(
            f"{what} '{given}' is not known: allowed are {listed}{nearest(given, words)}"
        )


def nearest(given: str, known: Iterable[str]) -> str:
    """`; did you mean int8?` where one of the `known` words is like `given`, else nothing."""
    near = difflib.get_close_matches(given, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""


class TargetMissedError(EdgecompressError):
    """A target was missed, or a regression was found. The best artifact is kept and named."""

    exit_code = 3


class EnvironmentMissingError(EdgecompressError):
    """Something is missing on this machine; the message names the command that installs it."""

    exit_code = 4


class InterruptedRunError(EdgecompressError):
    """Stopped by the user."""

    exit_code = 130


_LIBRARIES = ("torch", "onnxscript", "onnx_ir", "onnx", "numpy")
"""Packages whose source is not what a user would change."""


def blamed(error: BaseException) -> str:
    """Why a user's network failed, and the line of their source where it did, in one line.

    `AttributeError: no attribute 'missing' (net.py:41: return self.fc(y.missing))`. The exporter
    wraps what failed in errors that only say which step it was: they are passed over.
    """
    chain = [error, *_causes(error)]
    own = (part for part in chain if not type(part).__module__.startswith("torch.onnx"))
    cause = next(own, chain[-1])
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    reason = missing_kernel(cause) or ": ".join([type(cause).__name__, *lines[:1]])
    places = [place for part in chain for place in _places(part)]
    return f"{reason} ({places[-1]})" if places else reason


def missing_kernel(error: BaseException) -> str | None:
    """`operator torchvision::nms has no kernel for CUDA`, where that is what PyTorch says in many
    lines.
    """
    match = _NO_KERNEL.search(str(error)) if isinstance(error, NotImplementedError) else None
    return f"operator {match[1]} has no kernel for {match[2]}" if match else None


def _causes(error: BaseException) -> Iterator[BaseException]:
    while error.__cause__ is not None:
        error = error.__cause__
        yield error


def _places(error: BaseException) -> Iterator[str]:
    """`file.py:line: source` of each of the user's own lines that led to `error`; the exporter
    keeps those of the operation that it converts beside its node.
    """
    for frame, number in traceback.walk_tb(error.__traceback__):
        yield from _shown(traceback.FrameSummary(frame.f_code.co_filename, number, ""))
        meta = getattr(frame.f_locals.get("node"), "meta", None)
        trace = meta.get("stack_trace") if isinstance(meta, dict) else None
        for line in str(trace or "").splitlines():
            name, comma, rest = line.strip().removeprefix('File "').partition('", line ')
            number_text = rest.partition(",")[0]
            if comma and number_text.isdigit():
                yield from _shown(traceback.FrameSummary(name, int(number_text), ""))


def _shown(frame: traceback.FrameSummary) -> Iterator[str]:
    path = Path(frame.filename)
    installed = {"site-packages", "dist-packages"} & {*path.parts}
    library = path.is_relative_to(sysconfig.get_path("stdlib")) and not installed
    package = path.parts[path.parts.index(installed.pop()) + 1] if installed else ""
    ours = path.is_relative_to(Path(__file__).parent)
    if path.is_file() and not library and not ours and package not in _LIBRARIES:
        yield f"{path.name}:{frame.lineno}: {frame.line}"
