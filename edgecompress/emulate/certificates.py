"""Certificates of one emulation, made by a process of its own, so that this one never holds both
Scapy's relatives and grpc.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from edgecompress.errors import EnvironmentMissingError

_MAKE = """
import json, sys
from pathlib import Path
from edgecompress.errors import EdgecompressError
from edgecompress.online.secure import make_certificates
asked = json.load(sys.stdin)
try:
    addresses = {name: [address] for name, address in asked["hosts"].items()}
    make_certificates(Path(asked["folder"]), addresses)
except EdgecompressError as error:
    sys.exit(str(error))
"""


def make(folder: Path, hosts: dict[str, str]) -> dict[str, list[str]]:
    """The options that give each host, by name and address, its certificate, its key and the run's
    authority.
    """
    asked = json.dumps({"folder": str(folder), "hosts": hosts})
    done = subprocess.run(
        [sys.executable, "-c", _MAKE], input=asked, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise EnvironmentMissingError(
            (done.stderr.strip().splitlines() or ["the run's certificates could not be made"])[-1]
        )
    return {
        name: [
            "--tls-ca",
            str(folder / "ca.pem"),
            "--tls-cert",
            str(folder / f"{name}.pem"),
            "--tls-key",
            str(folder / f"{name}.key"),
        ]
        for name in hosts
    }
