"""Certificates of one emulation, created in a process of its own: the root process never imports
grpc.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from edgecompress.emulate import shell
from edgecompress.emulate.user import User
from edgecompress.errors import EnvironmentMissingError

_MAKE = """
import json, sys
from pathlib import Path
from edgecompress.errors import EdgecompressError
from edgecompress.online.secure import make_certificates
request = json.load(sys.stdin)
try:
    addresses = {name: [address] for name, address in request["hosts"].items()}
    make_certificates(Path(request["folder"]), addresses)
except EdgecompressError as error:
    sys.exit(str(error))
"""


def make(folder: Path, hosts: dict[str, str], user: User) -> dict[str, list[str]]:
    """Create certificates in `folder` for `hosts` (name: address), with the rights of `user`. The
    parent of `folder` is root's, `folder` does not exist.

    Returns the command-line options that give each host its certificate, its key, and the run's
    certificate authority. Raises `EnvironmentMissingError` when they cannot be created.
    """
    folder.mkdir(mode=0o700)
    os.chown(folder, user.uid, user.gid)
    request = json.dumps({"folder": str(folder), "hosts": hosts})
    done = shell.python_as(user, "-c", _MAKE, request=request)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise EnvironmentMissingError(
            lines[-1] if lines else "the run's certificates could not be created"
        )
    return {name: _options(folder, name) for name in hosts}


def _options(folder: Path, name: str) -> list[str]:
    files = {"ca": "ca.pem", "cert": f"{name}.pem", "key": f"{name}.key"}
    return [word for key, file in files.items() for word in (f"--tls-{key}", str(folder / file))]
