"""What the tests of real emulations share; they run as root only."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgecompress.emulate import shell
from edgecompress.emulate.network import prefix
from edgecompress.emulate.topology import Graph, graph_from
from tests import forked

ROOT = Path(__file__).parents[2]
TWO_HOST = ROOT / "topologies" / "two_host.py"
PROGRAMS = ("mnexec", "vde_switch", "wirefilter", "tcpdump", "ip", "tc", "ping", "ethtool")
MARKS = [
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root"),
    pytest.mark.skipif(
        any(shutil.which(name) is None for name in PROGRAMS),
        reason=f"needs {', '.join(PROGRAMS)}: make system",
    ),
    pytest.mark.xdist_group("emulate"),
]
SMALL = ["--teacher", "lenet5", "--student", "mlp", "--epochs", "1"]


def emulate(
    *arguments: object, cwd: Path, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`edgecompress emulate` with `arguments`, in a process of its own."""
    command = ["-m", "edgecompress", "emulate", *map(str, arguments)]
    return forked.run(command, cwd=cwd, timeout=280, env={**os.environ, **(env or {})})


def left_behind(pid: int) -> list[str]:
    """Interfaces, processes and control groups of the run of process `pid` that are still there."""
    begin = prefix(pid)
    links = [line for line in shell.run("ip", "-o", "link").splitlines() if f" {begin}" in line]
    processes = [
        line
        for line in shell.run("ps", "-eo", "args").splitlines()
        if f"mininet:{begin}" in line or f"{begin}x" in line
    ]
    groups = [str(path) for path in Path("/sys/fs/cgroup").glob(f"**/edgecompress-{pid}-*")]
    return [*links, *processes, *groups]


def readable_by(uid: int) -> bool:
    """Can another user use this virtual environment?"""
    command = shell.as_user(uid, uid, sys.executable, "-c", "import edgecompress.errors")
    return subprocess.run(command, capture_output=True, check=False, cwd="/").returncode == 0


def graph(**link: Any) -> Graph:
    """Two hosts and one link."""
    values = {
        "name": "t",
        "hosts": {"a": {"role": "teacher"}, "b": {"role": "student"}},
        "switches": {},
        "links": [["a", "b", link]],
    }
    return graph_from(values)
