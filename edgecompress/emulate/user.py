"""The user who called sudo: the roles run with that user's rights, and the output belongs to that
user.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from edgecompress.errors import EnvironmentMissingError, UsageError
from edgecompress.measure import machine

MARKER = ".edgecompress-emulate"
"""A file that marks an output folder of an emulation: everything in the folder is given to the
invoking user.
"""


@dataclass(frozen=True)
class User:
    """The user who owns the output and runs the roles; `invoked` if through sudo."""

    uid: int
    gid: int
    name: str
    invoked: bool


def invoking_user() -> User:
    """The user who called sudo, or the caller.

    Raises `UsageError` if SUDO_UID or SUDO_GID is not a number.
    """
    try:
        uid = int(os.environ.get("SUDO_UID", os.getuid()))
        gid = int(os.environ.get("SUDO_GID", os.getgid()))
    except ValueError as error:
        raise UsageError(
            f"SUDO_UID and SUDO_GID must be numbers, of a user and of a group: {error}"
        ) from error
    invoked = "SUDO_UID" in os.environ
    with contextlib.suppress(KeyError):
        return User(uid, gid, pwd.getpwuid(uid).pw_name, invoked)
    return User(uid, gid, str(uid), invoked)


def need_root() -> None:
    """Raises `EnvironmentMissingError` with the sudo command to type, unless this is root."""
    if os.geteuid() == 0:
        return
    sibling = Path(sys.executable).with_name("edgecompress")
    program = str(sibling) if sibling.is_file() else shutil.which("edgecompress") or str(sibling)
    command = shlex.join([str(Path(program).resolve()), *sys.argv[1:]])
    raise EnvironmentMissingError(f"namespaces and captures need root: run sudo {command}")


def environment(user: User, roles: int = 1) -> dict[str, str]:
    """The environment of a process of `user`: no proxies, the user's own home and caches, and for
    each of `roles` processes its share of the cores.
    """
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.lower().endswith("_proxy") and not key.startswith("SUDO_")
    }
    if roles > 1:
        kept["OMP_WAIT_POLICY"] = "PASSIVE"
        kept["EDGECOMPRESS_THREADS"] = str(max(1, machine.cores() // roles))
    if user.invoked:
        with contextlib.suppress(KeyError):
            kept["HOME"] = pwd.getpwuid(user.uid).pw_dir
        kept.pop("XDG_CACHE_HOME", None)
        kept |= {"USER": user.name, "LOGNAME": user.name}
    return kept


def make_folder(root: Path, user: User) -> None:
    """Create and mark the output folder of an emulation.

    The folder, all that it holds, and every parent that is created belong to the user.
    """
    missing = [path for path in (root, *root.parents) if not path.exists()]
    root.mkdir(parents=True, exist_ok=True)
    for path in missing:
        os.chown(path, user.uid, user.gid)
    (root / MARKER).touch()
    give_to(root, user)


def give_to(root: Path, user: User) -> None:
    """Give `root` and everything in it to `user`."""
    for path in (root, *root.rglob("*")):
        with contextlib.suppress(FileNotFoundError):
            os.chown(path, user.uid, user.gid, follow_symlinks=False)
