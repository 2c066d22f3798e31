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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgecompress.errors import EnvironmentMissingError, UsageError
from edgecompress.measure import machine

LARGEST_ID = 2**32 - 1
MARKER = ".edgecompress-emulate"
"""A file that marks an output folder of an emulation, which a later one may empty."""


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
        if not (0 <= uid < LARGEST_ID and 0 <= gid < LARGEST_ID):
            raise ValueError(f"{uid} and {gid}")
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


@contextlib.contextmanager
def rights_of(user: User) -> Iterator[None]:
    """Within it this process, which is root, reads and writes files with the rights of `user`: what
    that user has put in the way (links, folders that are exchanged meanwhile) leads nowhere that
    the user could not go.
    """
    if os.geteuid() != 0 or user.uid == 0:
        yield
        return
    groups = os.getgroups()
    try:
        os.setgroups(os.getgrouplist(user.name, user.gid))
        os.setegid(user.gid)
        os.seteuid(user.uid)
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def make_folder(root: Path, user: User) -> None:
    """Create and mark the output folder of an emulation, with the rights of the user, whom all
    belongs. Raises `UsageError` where these do not suffice.
    """
    with using(root, user):
        root.mkdir(parents=True, exist_ok=True)
        (root / MARKER).touch()


@contextlib.contextmanager
def using(root: Path, user: User) -> Iterator[None]:
    """`rights_of` the user, for work in the output folder `root`. Raises `UsageError` where these
    do not suffice.
    """
    try:
        with rights_of(user):
            yield
    except OSError as error:
        raise UsageError(
            f"output folder '{root}' cannot be used by {user.name} ({error.strerror}): give -o "
            "in a folder of that user"
        ) from error


def import_from_safe_folders() -> None:
    """Import nothing more from the working folder, which a user may have filled: this process is
    root.
    """
    here = Path.cwd()
    sys.path[:] = [name for name in sys.path if name and Path(name).resolve() != here]
