"""The first load of a file, where a crash of ONNX Runtime does no harm: in a child process, which
waits for the next file until one crashes it, or this process ends.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import subprocess
import tempfile
import threading
from dataclasses import asdict
from pathlib import Path
from typing import IO, cast

from edgecompress.errors import UsageError
from edgecompress.measure import processes, runtime
from edgecompress.measure.requests import Failure, TrialAnswer, TrialRequest

_PATIENCE_S = 5.0


def try_out(model: Path) -> None:
    """Load a new file for the first time, and run it once.

    Raises `EdgecompressError` with the reason where it cannot be loaded or run.
    """
    _children.answer(TrialRequest(str(model), _folder()))


def first_load(model: Path, provider: str = runtime.CPU) -> str | None:
    """Load a file of unknown origin for the first time; returns its `Runtime.warning`.

    Raises `EdgecompressError` with the reason where it cannot be loaded, or crashes ONNX Runtime.
    """
    if not model.is_file():
        raise UsageError(f"model '{model}' does not exist: give an .onnx file")
    try:
        request = TrialRequest(str(model), _folder(), provider, runs=False)
        return _children.answer(request)["warning"]
    finally:
        _children.end()  # a device that runs one file has better uses for its memory


def _folder() -> str:
    """The working folder; the root where it was removed, in which only whole paths are of use."""
    try:
        return str(Path.cwd())
    except FileNotFoundError:
        return os.sep


class _Child:
    """One process that tries files, one after the other."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.tried = 0
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115  (as long as the child)
        self._process = subprocess.Popen(
            processes.command_of("edgecompress.measure.trial"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
        )
        self._questions = cast("IO[str]", self._process.stdin)
        self._answers = cast("IO[str]", self._process.stdout)

    def ask(self, request: TrialRequest) -> Failure | TrialAnswer | None:
        """The answer to one request, or None where the child ends before it."""
        self.tried += 1
        try:
            self._questions.write(json.dumps(asdict(request)) + "\n")
            self._questions.flush()
            line = self._answers.readline()
        except BrokenPipeError:
            line = ""
        return json.loads(line) if line.endswith("\n") else None

    def end(self, patience_s: float = _PATIENCE_S) -> tuple[int, str]:
        """End the process, by force after `patience_s` seconds; its exit code, negative for a
        signal, and what it wrote to stderr.
        """
        with contextlib.suppress(OSError):  # what was not read of a request
            self._questions.close()
        try:
            code = self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._answers.close()
        self._stderr.seek(0)
        words = self._stderr.read()
        self._stderr.close()
        return code, words


class _Children:
    """The child that tries this process's files, started when it is first needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: _Child | None = None

    def answer(self, request: TrialRequest) -> TrialAnswer:
        """Raises the error that the child reports, or that says how it ended.

        A child that earlier files may have harmed is no witness: what ends it is tried once more in
        a fresh one.
        """
        with self._lock:
            while True:
                if self._child is None or self._child.owner != os.getpid():
                    self._child = _Child()
                child = self._child
                try:
                    answer = child.ask(request)
                except BaseException:  # Ctrl-C: the answer must not be taken for another one's
                    self._child = None
                    child.end(patience_s=0.0)
                    raise
                if answer is not None:
                    return processes.checked(answer)
                self._child = None
                code, words = child.end()
                if child.tried == 1:
                    raise processes.ended(Path(request.model), code, words)

    def end(self) -> None:
        """End the child, where there is one and this process started it."""
        child, self._child = self._child, None
        if child is not None and child.owner == os.getpid():
            child.end()


_children = _Children()
atexit.register(_children.end)
