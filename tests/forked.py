"""Commands in processes of their own that need not import anything again.

A server (`python -m tests.forked`), started once by each process of the tests, imports what
commands need, and forks for each one. What runs is the real command, with its own process id,
environment, folder, exit code and signals; only its imports, and the seed of its hashes, are those
of the server. Where these matter (`--help` without torch, README's lines as a newcomer types them),
a test runs Python anew.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import pkgutil
import runpy
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path
from typing import IO, Any, NoReturn

APART = ("emulate", "online", "triton", "__main__")
"""Parts of the package that a child imports by itself: gRPC must not be there before a fork."""

START_S = 120
"""Seconds that the server has to start and to fork; it imports for about 7."""


class Forked:
    """A process that the server forked; a subset of `subprocess.Popen`."""

    def __init__(self, server: Server, pid: int) -> None:
        self._server, self.pid = server, pid

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._server.codes.get(self.pid)

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, once it has ended. Raises `subprocess.TimeoutExpired`."""
        with self._server.ended:
            if not self._server.ended.wait_for(lambda: self.poll() is not None, timeout):
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
        return self._server.codes[self.pid]

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


class Server:
    """The process that forks, seen from the tests."""

    def __init__(self) -> None:
        self.codes: dict[int, int] = {}
        self.ended = threading.Condition()
        self._lock, self._pids = threading.Lock(), list[int]()
        command = [sys.executable, "-m", "tests.forked"]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[1],
        )
        atexit.register(self._process.kill)
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            message = json.loads(line)
            with self.ended:
                if "code" in message:
                    self.codes[message["pid"]] = message["code"]
                else:
                    self.codes.pop(message["pid"], None)
                    self._pids.append(message["pid"])
                self.ended.notify_all()

    def start(
        self,
        arguments: list[str],
        *,
        cwd: Path,
        env: dict[str, str],
        stdout: Path,
        stderr: Path,
    ) -> Forked:
        """`python ARGUMENTS`: a script, or `-m edgecompress`; what it prints is appended to the
        files.
        """
        assert self._process.stdin is not None
        nice = os.getpriority(os.PRIO_PROCESS, 0)
        request = {"arguments": arguments, "cwd": str(cwd), "env": env, "nice": nice}
        with self._lock:
            line = {**request, "stdout": str(stdout), "stderr": str(stderr)}
            self._process.stdin.write(json.dumps(line) + "\n")
            self._process.stdin.flush()
            with self.ended:
                if not self.ended.wait_for(lambda: bool(self._pids), START_S):
                    raise RuntimeError(
                        f"no process was forked in {START_S} s: see its stderr above"
                    )
                return Forked(self, self._pids.pop())


_server: Server | None = None


def server() -> Server:
    """The server of this process of the tests."""
    global _server
    if _server is None:
        _server = Server()
    return _server


def run(
    arguments: list[str], *, cwd: Path, env: dict[str, str] | None = None, timeout: float = 500
) -> subprocess.CompletedProcess[str]:
    """`python ARGUMENTS`, as `subprocess.run` gives it. Raises `subprocess.TimeoutExpired`."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        child = start(arguments, cwd=cwd, env=env, stdout=out, stderr=err)
        try:
            code = child.wait(timeout)
        finally:
            child.kill()
        return subprocess.CompletedProcess(arguments, code, out.read_text(), err.read_text())


def start(
    arguments: list[str],
    *,
    cwd: Path,
    stdout: Path,
    stderr: Path,
    env: dict[str, str] | None = None,
) -> Forked:
    """`python ARGUMENTS`, with what it prints appended to the files."""
    own = dict(os.environ) if env is None else env
    return server().start(arguments, cwd=cwd, env=own, stdout=stdout, stderr=stderr)


def preload() -> None:
    """Import what commands need, and export once: the exporter's own tables are kept too."""
    import torch

    import edgecompress
    from edgecompress.export.onnx import to_onnx

    for module in pkgutil.walk_packages(edgecompress.__path__, "edgecompress."):
        if not any(part in module.name.split(".") for part in APART):
            importlib.import_module(module.name)
    importlib.import_module("onnxruntime.quantization")
    to_onnx(torch.nn.Flatten(), torch.zeros(1, 1, 2, 2))
    gc.collect()
    gc.freeze()  # children that look for garbage would copy all of it


def serve() -> dict[str, Any]:
    """Fork for each line of stdin, and tell how the children end. Returns in each child, with its
    request; ends with stdin.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # nothing but answers
    wake, woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(woken)
    watched = selectors.DefaultSelector()
    watched.register(0, selectors.EVENT_READ)
    watched.register(wake, selectors.EVENT_READ)
    rest = b""
    while True:
        ready = {key.fd for key, _ in watched.select()}
        if wake in ready:
            os.read(wake, 4096)
            tell_ended(answers)
        if 0 not in ready:
            continue
        read = os.read(0, 1 << 20)
        if not read:
            sys.exit(0)
        *lines, rest = (rest + read).split(b"\n")
        for line in lines:
            child = os.fork()
            if child == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for descriptor in (wake, woken):
                    os.close(descriptor)
                answers.close()
                watched.close()
                return dict(json.loads(line))
            answers.write(json.dumps({"pid": child}) + "\n")
            answers.flush()


def tell_ended(answers: IO[str]) -> None:
    """Say which children have ended, and how."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        code = os.waitstatus_to_exitcode(status)
        answers.write(json.dumps({"pid": pid, "code": code}) + "\n")
        answers.flush()


def become(request: dict[str, Any]) -> NoReturn:
    """Be the process that was asked for, up to its end, but for destructors of C++: they would wait
    for threads of the server, which no child has.
    """
    code = 0
    try:
        execute(request)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]  (waits for threads, as an exit does)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def execute(request: dict[str, Any]) -> None:
    """Run the command in its folder and environment, writing to its files."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if os.getpriority(os.PRIO_PROCESS, 0) != request["nice"]:
        os.setpriority(os.PRIO_PROCESS, 0, request["nice"])
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(file, descriptor)
        os.close(file)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    first, *rest = request["arguments"]
    if first == "-m":
        sys.argv = rest
        sys.path[0] = request["cwd"]
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [first, *rest]
        sys.path[0] = str(Path(first).parent)
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    preload()
    become(serve())
