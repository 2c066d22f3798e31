"""Commands run as root: a failure is one line, and no child outlives this process, however that
ends.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from edgecompress.emulate.user import User, environment
from edgecompress.errors import EdgecompressError, EnvironmentMissingError

PACKAGES = {
    "mnexec": "mininet",
    "ip": "iproute2",
    "tc": "iproute2",
    "ping": "iputils-ping",
    "ethtool": "ethtool",
    "tcpdump": "tcpdump",
    "setpriv": "util-linux",
}
"""Programs that an emulation needs, and the Debian packages that provide them."""
_PR_SET_PDEATHSIG = 1


def needed(more: Mapping[str, str] | None = None) -> None:
    """Raises `EnvironmentMissingError` with the command that installs the missing programs."""
    required = {**PACKAGES, **(more or {})}
    missing = [name for name in required if shutil.which(name) is None]
    if missing:
        packages = " ".join(dict.fromkeys(required[name] for name in missing))
        raise EnvironmentMissingError(
            f"{', '.join(missing)} not found: run apt-get install -y --no-install-recommends "
            f"{packages}"
        )


def run(*command: str, check: bool = True, timeout: float = 30) -> str:
    """The standard output of a command. Raises a one-line `EdgecompressError` when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout)
    if check and done.returncode:
        message = " ".join((done.stderr or done.stdout).split())[:300]
        raise EdgecompressError(f"'{' '.join(command)}' failed: {message}")
    return done.stdout


def inside(pid: int, *command: str) -> tuple[str, ...]:
    """`command` in the network namespace of process `pid`."""
    return ("mnexec", "-a", str(pid), *command)


def run_inside(pid: int, line: str, *, check: bool = True, timeout: float = 30) -> str:
    """The standard output of `line`, split at spaces, run in the network namespace of `pid`."""
    return run(*inside(pid, *line.split()), check=check, timeout=timeout)


def as_user(uid: int, gid: int, *command: str) -> tuple[str, ...]:
    """`command` with the rights of a user, who owns what it writes."""
    if not uid:
        return command
    # the change of user would clear the signal that `_die_with_parent` has set
    return (
        "setpriv",
        f"--reuid={uid}",
        f"--regid={gid}",
        "--init-groups",
        "--pdeathsig=KILL",
        "--",
        *command,
    )


def python_as(user: User, *words: str, request: str) -> subprocess.CompletedProcess[str]:
    """What a Python process of `user` answers to `request` on its standard input. It imports
    nothing from the working folder, nor from what the environment names: where there is no other
    user it is root.
    """
    return subprocess.run(
        as_user(user.uid, user.gid, sys.executable, "-I", *words),
        input=request,
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env=environment(user),
    )


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def start(
    command: Sequence[str],
    *,
    stdin: int = subprocess.DEVNULL,
    stdout: int | IO[str] | None = None,
    stderr: int | IO[str] | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> subprocess.Popen[str]:
    """Start a child that is killed when this process ends, however it ends."""
    return subprocess.Popen(
        command,
        text=True,
        preexec_fn=_die_with_parent,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        cwd=cwd,
        env=env,
    )


def stop(
    child: subprocess.Popen[str], how: signal.Signals = signal.SIGTERM, grace: float = 5.0
) -> None:
    """End a child of ours; kill it when it has not ended after `grace` seconds."""
    if child.poll() is not None:
        return
    child.send_signal(how)
    try:
        child.wait(grace)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait(grace)


def alive(pid: int) -> bool:
    """True if there is a process `pid`."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
