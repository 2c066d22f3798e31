"""The shipped topologies load in Mininet's own command."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgecompress.emulate import shell
from tests.emulate.running import MARKS, ROOT

pytestmark = MARKS


@pytest.mark.skipif(
    any(shutil.which(name) is None for name in ("brctl", "unshare")),
    reason="mn's bridges need brctl: make system",
)
@pytest.mark.parametrize("name", ["two_host", "star", "edge_cloud", "lossy_wifi", "two_teachers"])
def test_mn_accepts_the_topologies(name: str) -> None:
    """`mn --custom`, in namespaces of its own where it can change no setting of this machine, nor
    end a process of anyone else's.
    """
    runner = str(Path(sys.executable).with_name("mn"))
    frozen = "".join(
        f"mount -o bind {path} {path} && mount -o remount,bind,ro {path} && "
        for path in ("/proc/sys", "/tmp", "/root")
    )
    line = f'mount -t proc proc /proc && {frozen} exec {runner} "$@"'
    options = (
        "--custom",
        str(ROOT / "topologies" / f"{name}.py"),
        "--topo",
        name,
        "--switch",
        "lxbr",
        "--controller",
        "none",
    )
    command = (
        "unshare",
        "--net",
        "--mount",
        "--pid",
        "--ipc",
        "--fork",
        "sh",
        "-c",
        line,
        "mn",
        *options,
        "--test",
        "pingall",
    )
    settings = {key: shell.run("sysctl", "-n", key) for key in ("fs.file-max", "net.core.rmem_max")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "0% dropped" in done.stdout + done.stderr
    assert settings == {key: shell.run("sysctl", "-n", key) for key in settings}
