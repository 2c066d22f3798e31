"""Commands as root: one line when they fail, and children that do not outlive this process, however
it ends.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

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
"""Programs that an emulation needs, and Debian's packages that bring them."""
_PR_SET_PDEATHSIG = 1


def needed(more: Mapping[str, str] | None = None) -> None:
    """Raises `EnvironmentMissingError` with the line that installs what is absent."""
    wanted = {**PACKAGES, **(more or {})}
    absent = [name for name in wanted if shutil.which(name) is None]
    if absent:
        packages = " ".join(dict.fromkeys(wanted[name] for name in absent))
        raise EnvironmentMissingError(
            f"{', '.join(absent)} not found: run apt-get install -y --no-install-recommends "
            f"{packages}"
        )


def run(*command: str, check: bool = True, timeout: float = 30) -> str:
    """The output of a command. Raises `EdgecompressError` in one line when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout)
    if check and done.returncode:
        said = " ".join((done.stderr or done.stdout).split())[:300]
        raise EdgecompressError(f"'{' '.join(command)}' failed: {said}")
    return done.stdout


def inside(pid: int, *command: str) -> tuple[str, ...]:
    """`command` in the network namespace of process `pid`."""
    return ("mnexec", "-a", str(pid), *command)


def as_user(uid: int, gid: int, *command: str) -> tuple[str, ...]:
    """`command` with the rights of a user, who then owns what it writes."""
    if not uid:
        return command
    # the change of user would clear what `_die_with_parent` has set
    return (
        "setpriv",
        f"--reuid={uid}",
        f"--regid={gid}",
        "--init-groups",
        "--pdeathsig=KILL",
        "--",
        *command,
    )


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def start(command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
    """A child that is killed when this process ends, in whatever way."""
    options.setdefault("stdin", subprocess.DEVNULL)
    return subprocess.Popen(command, text=True, preexec_fn=_die_with_parent, **options)


def stop(
    child: subprocess.Popen[str], how: signal.Signals = signal.SIGTERM, grace: float = 5.0
) -> None:
    """End a child that we started; kill it when it does not."""
    if child.poll() is not None:
        return
    child.send_signal(how)
    try:
        child.wait(grace)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait(grace)


def alive(pid: int) -> bool:
    """Is there a process `pid`?"""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
