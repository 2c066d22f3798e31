"""Capture at one interface: tcpdump with nanoseconds and short snapshots, and the kernel's own
counters beside it.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from edgecompress.emulate import shell
from edgecompress.errors import EdgecompressError

SNAPSHOT = 128
"""Bytes kept of each frame: headers and the options of TCP. The original length is kept beside
them.
"""
BUFFER_KIB = 16_384


@dataclass
class Capture:
    """A running tcpdump, ready: from the counters `before` on, everything is in `path`."""

    host: str
    interface: str
    pid: int
    path: Path
    child: subprocess.Popen[str]
    before: dict[str, int]
    after: dict[str, int] | None = None
    dropped: int = 0
    captured: int = 0
    whole: bool = False

    def stop(self) -> None:
        """End the capture and read the counters; what is under way has arrived."""
        self.after = counters(self.pid, self.interface)
        time.sleep(0.2)
        running = self.child.poll() is None
        if running:
            self.child.send_signal(signal.SIGINT)
        try:
            _, said = self.child.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            self.child.kill()
            _, said = self.child.communicate()
        self.whole = running and "dropped by kernel" in (said or "")
        self.captured = _number(said, r"(\d+) packets? captured")
        self.dropped = _number(said, r"(\d+) packets? dropped by kernel")

    def counted(self) -> int:
        """Bytes that the kernel counted on the interface, both ways, between ready and stop."""
        after = self.after or self.before
        return sum(after[key] - self.before[key] for key in ("rx_bytes", "tx_bytes"))


def _number(text: str, pattern: str) -> int:
    found = re.search(pattern, text or "")
    return int(found[1]) if found else 0


def counters(pid: int, interface: str) -> dict[str, int]:
    """The kernel's counters of an interface in the namespace of `pid`."""
    said = json.loads(
        shell.run(*shell.inside(pid), "ip", "-s", "-j", "link", "show", "dev", interface)
    )[0]["stats64"]
    return {
        f"{way}_{what}": int(said[way][what])
        for way in ("rx", "tx")
        for what in ("bytes", "packets", "dropped")
    }


def capture(host: str, interface: str, pid: int, path: Path, timeout: float = 10.0) -> Capture:
    """Start to capture, and return once tcpdump listens: the first SYN is in it. Raises
    `EdgecompressError` when it does not start.
    """
    command = shell.inside(
        pid,
        "tcpdump",
        "-i",
        interface,
        "-w",
        str(path),
        "-s",
        str(SNAPSHOT),
        "-B",
        str(BUFFER_KIB),
        "-U",
        "-n",
        "-Z",
        "root",
        "--time-stamp-precision=nano",
    )
    child = shell.start(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    heard = cast(IO[str], child.stderr).fileno()
    said, deadline = "", time.monotonic() + timeout
    while "listening on" not in said:
        if child.poll() is not None or time.monotonic() > deadline:
            shell.stop(child)
            raise EdgecompressError(
                f"tcpdump did not start at {host}: {' '.join(said.split())[:200]}"
            )
        if select.select([heard], [], [], 0.1)[0]:
            said += os.read(heard, 4096).decode(errors="replace")
    return Capture(host, interface, pid, path, child, counters(pid, interface))
