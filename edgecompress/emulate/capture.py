"""Capture at one interface: tcpdump with nanosecond timestamps and short snapshots, checked against
the kernel's own counters.
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
"""Bytes kept of each frame: headers and TCP options. The original length is recorded as well."""
BUFFER_KIB = 16_384


@dataclass
class Capture:
    """A running tcpdump: every frame that the kernel counts after `before` is in `path`."""

    host: str
    interface: str
    pid: int
    path: Path
    child: subprocess.Popen[str]
    before: dict[str, int]
    after: dict[str, int] | None = None
    dropped: int = 0
    captured: int = 0
    complete: bool = False

    def stop(self) -> None:
        """End the capture and read the counters; frames in flight have time to arrive."""
        self.after = counters(self.pid, self.interface)
        time.sleep(0.2)
        running = self.child.poll() is None
        if running:
            self.child.send_signal(signal.SIGINT)
        try:
            _, output = self.child.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            self.child.kill()
            _, output = self.child.communicate()
        self.complete = running and "dropped by kernel" in (output or "")
        self.captured = _number(output, r"(\d+) packets? captured")
        self.dropped = _number(output, r"(\d+) packets? dropped by kernel")

    def counted(self) -> int:
        """Bytes, in both directions, that the kernel counted while the capture ran."""
        after = self.after or self.before
        return sum(after[key] - self.before[key] for key in ("rx_bytes", "tx_bytes"))


def _number(text: str, pattern: str) -> int:
    match = re.search(pattern, text or "")
    return int(match[1]) if match else 0


def counters(pid: int, interface: str) -> dict[str, int]:
    """The kernel's counters of an interface in the namespace of `pid`, e.g. `rx_bytes`."""
    answer = json.loads(shell.run_inside(pid, f"ip -s -j link show dev {interface}"))
    statistics = answer[0]["stats64"]
    return {
        f"{direction}_{quantity}": int(statistics[direction][quantity])
        for direction in ("rx", "tx")
        for quantity in ("bytes", "packets", "dropped")
    }


def capture(host: str, interface: str, pid: int, path: Path, timeout: float = 10.0) -> Capture:
    """Start a capture, and return once tcpdump listens: the first SYN is in it.

    Raises `EdgecompressError` when tcpdump does not start within `timeout` seconds.
    """
    options = f"-s {SNAPSHOT} -B {BUFFER_KIB} -U -n -Z root --time-stamp-precision=nano"
    command = shell.inside(pid, "tcpdump", "-i", interface, "-w", str(path), *options.split())
    child = shell.start(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    stderr = cast(IO[str], child.stderr).fileno()
    output = ""
    deadline = time.monotonic() + timeout
    while "listening on" not in output:
        if child.poll() is not None or time.monotonic() > deadline:
            shell.stop(child)
            raise EdgecompressError(
                f"tcpdump did not start at {host}: {' '.join(output.split())[:200]}"
            )
        if select.select([stderr], [], [], 0.1)[0]:
            output += os.read(stderr, 4096).decode(errors="replace")
    return Capture(host, interface, pid, path, child, counters(pid, interface))
