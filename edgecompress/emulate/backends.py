"""How links are built.

Back ends: `netem` (veth with the kernel's sch_netem), `wirefilter` (two VDE switches joined by
wirefilter; needs no kernel module), `none` (veth alone, for links without delay and loss).
Bandwidth is limited at both ends by HTB.
"""

from __future__ import annotations

import math
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from edgecompress.emulate import shell
from edgecompress.emulate.links import Built
from edgecompress.emulate.topology import Link
from edgecompress.errors import EdgecompressError, EnvironmentMissingError

OFFLOADS = ("tso", "gso", "gro", "tx", "rx", "sg")
"""Work that a network card would take over; off, so that frames are those of a real network."""


def kernel_has_netem() -> bool:
    """True if the kernel has sch_netem, tried in a namespace that ends with the trial."""
    trial = (
        "ip link add probe type veth peer name probep && tc qdisc add dev probe root netem "
        "delay 1ms"
    )
    command = ["unshare", "--net", "sh", "-c", trial]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def backend_for(link: Link, requested: str, netem: bool) -> str:
    """The back end of a link; `netem` if the kernel has sch_netem.

    Raises `EnvironmentMissingError` when the requested back end, or any, cannot build it here.
    """
    if not link.filtered and requested != "wirefilter":
        return "none"
    where = f"link {link.a} - {link.b}"
    if requested == "none" and link.filtered:
        raise EnvironmentMissingError(
            f"{where} has delay or loss, which --backend none cannot emulate: leave it out"
        )
    if requested == "netem" and not netem:
        raise EnvironmentMissingError(
            "the kernel has no sch_netem: leave --backend out, or load it with modprobe sch_netem"
        )
    if requested in ("auto", "netem") and netem:
        return "netem"
    if shutil.which("vde_switch") is None or shutil.which("wirefilter") is None:
        raise EnvironmentMissingError(
            f"{where} has delay or loss, the kernel has no sch_netem, and vde2 is not installed: "
            "run apt-get install -y vde2"
        )
    return "wirefilter"


def build(
    link: Link,
    backend: str,
    names: tuple[str, str],
    pids: tuple[int, int],
    folder: Path,
    correction_ms: float = 0.0,
) -> Built:
    """Build a link whose ends are interfaces `names` in the namespaces of `pids`.

    `correction_ms` is subtracted from the delay in each direction. `folder` holds the sockets and
    logs of the children.
    """
    children: tuple[subprocess.Popen[str], ...] = ()
    if backend == "wirefilter":
        children = _wirefilter(link, names, folder, correction_ms)
    else:
        shell.run(*f"ip link add {names[0]} type veth peer name {names[1]}".split())
    for name, pid in zip(names, pids, strict=True):
        shell.run(*f"ip link set {name} netns {pid}".split())
        for offload in OFFLOADS:
            shell.run_inside(pid, f"ethtool -K {name} {offload} off", check=False)
        shell.run_inside(pid, f"ip link set {name} txqueuelen 1000 up")
        _shape(link, backend, name, pid, correction_ms)
    return Built(link, backend, names, pids, children)


def _wirefilter(
    link: Link, names: tuple[str, str], folder: Path, correction_ms: float
) -> tuple[subprocess.Popen[str], ...]:
    """Two VDE switches with tap interfaces `names`, joined by a wirefilter."""
    sockets = [folder / name for name in names]
    switches = [
        _logged(folder / f"{name}.log", "vde_switch", "-s", str(socket), "-tap", name)
        for name, socket in zip(names, sockets, strict=True)
    ]
    ready = [Path("/sys/class/net") / name for name in names]
    ready += [socket / "ctl" for socket in sockets]
    _wait_until(
        lambda: all(path.exists() for path in ready), "vde_switch did not create its interface"
    )

    options = []
    delay_ms = _delay_ms(link, correction_ms)
    if delay_ms:
        jitter = f"+{link.jitter_ms:g}" if link.jitter_ms else ""
        options += ["-d", f"{delay_ms:g}{jitter}"]
    if link.loss_pct:
        options += ["-l", f"{link.loss_pct:g}"]
    ends = ":".join(map(str, sockets))
    wire = _logged(folder / f"{names[0]}-wire.log", "wirefilter", "-v", ends, *options)
    return (*switches, wire)


def _logged(log: Path, *command: str) -> subprocess.Popen[str]:
    """A child that reads from an open pipe and writes to `log`."""
    with open(log, "w") as stream:
        return shell.start(command, stdin=subprocess.PIPE, stdout=stream, stderr=stream)


def _delay_ms(link: Link, correction_ms: float) -> float:
    return max(0.0, (link.delay_ms or 0) - correction_ms)


def _shape(link: Link, backend: str, name: str, pid: int, correction_ms: float) -> None:
    """Limit what leaves `name`: HTB, below it a queue of twice the bandwidth-delay product, or
    netem where that is the back end.
    """
    parent = "root"
    if link.bw_mbps is not None:
        burst = max(3200, int(link.bw_mbps * 1e6 / 8 * 0.002))
        shell.run_inside(pid, f"tc qdisc add dev {name} root handle 5: htb default 1")
        shell.run_inside(
            pid,
            f"tc class add dev {name} parent 5: classid 5:1 htb rate {link.bw_mbps:g}mbit "
            f"burst {burst}",
        )
        parent = "parent 5:1"
    queue = f"tc qdisc add dev {name} {parent} handle 10:"
    packets = _queue_packets(link)
    if backend == "netem":
        effects = _netem_effects(link, correction_ms)
        shell.run_inside(pid, f"{queue} netem {effects} limit {10 * packets}")
    elif link.bw_mbps is not None:
        shell.run_inside(pid, f"{queue} pfifo limit {packets}")


def _queue_packets(link: Link) -> int:
    """Packets of 1500 bytes in twice the bandwidth-delay product, at least 100."""
    round_trip_s = 2e-3 * ((link.delay_ms or 0) + (link.jitter_ms or 0))
    return max(100, math.ceil(2 * (link.bw_mbps or 100) * 1e6 / 8 * round_trip_s / 1500))


def _netem_effects(link: Link, correction_ms: float) -> str:
    effects = ""
    delay_ms = _delay_ms(link, correction_ms)
    if delay_ms:
        effects = f"delay {delay_ms:g}ms"
        effects += f" {link.jitter_ms:g}ms" if link.jitter_ms else ""
    if link.loss_pct:
        effects += f" loss {link.loss_pct:g}%"
    return effects


def _wait_until(condition: Callable[[], bool], message: str, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise EdgecompressError(f"{message} within {seconds:g} s")
        time.sleep(0.02)
