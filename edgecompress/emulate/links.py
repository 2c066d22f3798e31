"""Links between namespaces, and proof that they are what was asked.

Back ends: `netem` (veth with the kernel's sch_netem), `wirefilter` (two VDE switches joined by
wirefilter; needs no kernel module), `none` (veth alone, for links without delay and loss).
Bandwidth is limited at both ends by HTB. A link is measured on its own, before it joins anything:
ping, and paced UDP both ways; it is used only if what it does is what was asked.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

from edgecompress.emulate import shell
from edgecompress.emulate.topology import Link
from edgecompress.errors import EdgecompressError, EnvironmentMissingError

HEADERS = 42
"""Bytes of Ethernet, IP and UDP headers around a datagram's payload."""
PAYLOAD = 1400
PROBE = str(Path(__file__).with_name("probe.py"))
TOLERANCE, LEAST_MS = 0.10, 1.0
"""A link's round trip and bandwidth may be off by so much: a share, or for the round trip
milliseconds if that is more.
"""
MEDIAN_SPREAD = 0.8
"""The median of 15 round trips, each with twice a uniform jitter of 1 ms more or less, is off by
more only once in 400 times.
"""
Z = 1.96
MOST_PACKETS = 120_000
"""Datagrams of one measurement of bandwidth: a second of 1.1 Gbit/s. Faster links are measured over
a shorter time.
"""


@dataclass
class Built:
    """A link as it stands: the interface of each end, in the namespace of each end's process."""

    link: Link
    backend: str
    interfaces: tuple[str, str]
    pids: tuple[int, int]
    children: list[subprocess.Popen[str]] = field(default_factory=list)
    measured: dict[str, float | None] = field(default_factory=dict)

    def end(self, node: str) -> tuple[str, int]:
        """(interface, pid) at `node`."""
        side = 0 if self.link.a == node else 1
        return self.interfaces[side], self.pids[side]

    def row(self) -> dict[str, Any]:
        """What the result says of it."""
        return {
            "a": self.link.a,
            "b": self.link.b,
            "backend": self.backend,
            "configured": self.link.configured(),
            "measured": self.measured,
        }


def kernel_has_netem() -> bool:
    """Does the kernel know sch_netem? Tried in a namespace of its own, of which nothing stays."""
    tried = (
        "ip link add probe type veth peer name probep && tc qdisc add dev probe root netem "
        "delay 1ms"
    )
    return (
        subprocess.run(
            ["unshare", "--net", "sh", "-c", tried], capture_output=True, check=False
        ).returncode
        == 0
    )


def backend_for(link: Link, wanted: str, netem: bool) -> str:
    """The back end of a link. Raises `EnvironmentMissingError` when the one asked for, or any,
    cannot do it here.
    """
    if not link.filtered and wanted != "wirefilter":
        return "none"
    if wanted == "none" and link.filtered:
        raise EnvironmentMissingError(
            f"link {link.a} - {link.b} has delay or loss, which --backend none cannot do: "
            "leave it out"
        )
    if wanted == "netem" and not netem:
        raise EnvironmentMissingError(
            "the kernel has no sch_netem: leave --backend out, or load it with modprobe sch_netem"
        )
    if wanted in ("auto", "netem") and netem:
        return "netem"
    if shutil.which("vde_switch") is None or shutil.which("wirefilter") is None:
        raise EnvironmentMissingError(
            f"link {link.a} - {link.b} has delay or loss; the kernel has no sch_netem, and "
            "vde2 is not here: run apt-get install -y vde2"
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
    """Make the link and move its ends into the namespaces of `pids`; `correction_ms` is taken off
    the delay each way.
    """
    built = Built(link, backend, names, pids)
    if backend == "wirefilter":
        sockets = [str(folder / name) for name in names]
        for name, socket in zip(names, sockets, strict=True):
            log = open(folder / f"{name}.log", "w")  # noqa: SIM115 (the child keeps it)
            built.children.append(
                shell.start(
                    ["vde_switch", "-s", socket, "-tap", name],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                )
            )
        made = [
            (Path(f"/sys/class/net/{name}"), Path(socket) / "ctl")
            for name, socket in zip(names, sockets, strict=True)
        ]
        _until(
            lambda: all(path.exists() for pair in made for path in pair),
            "vde_switch did not make its interface",
        )
        options = []
        delay = max(0.0, (link.delay_ms or 0) - correction_ms)
        if delay:
            options += ["-d", f"{delay:g}+{link.jitter_ms:g}" if link.jitter_ms else f"{delay:g}"]
        if link.loss_pct:
            options += ["-l", f"{link.loss_pct:g}"]
        log = open(folder / f"{names[0]}-wire.log", "w")  # noqa: SIM115
        command = ["wirefilter", "-v", ":".join(sockets), *options]
        built.children.append(shell.start(command, stdin=subprocess.PIPE, stdout=log, stderr=log))
    else:
        shell.run("ip", "link", "add", names[0], "type", "veth", "peer", "name", names[1])
    for name, pid in zip(names, pids, strict=True):
        shell.run("ip", "link", "set", name, "netns", str(pid))
        here = shell.inside(pid)
        for offload in ("tso", "gso", "gro", "tx", "rx", "sg"):
            shell.run(*here, "ethtool", "-K", name, offload, "off", check=False)
        shell.run(*here, "ip", "link", "set", name, "txqueuelen", "1000", "up")
        _shape(link, backend, name, pid, correction_ms)
    return built


def _shape(link: Link, backend: str, name: str, pid: int, correction_ms: float) -> None:
    """Limit what leaves `name`: HTB, a queue of twice the bandwidth-delay product, and netem below
    it where that is the back end.
    """
    parent, here = "root", shell.inside(pid)
    round_trip_s = 2e-3 * ((link.delay_ms or 0) + (link.jitter_ms or 0))
    packets = max(100, math.ceil(2 * (link.bw_mbps or 100) * 1e6 / 8 * round_trip_s / 1500))
    if link.bw_mbps is not None:
        rate, burst = f"{link.bw_mbps:g}mbit", max(3200, int(link.bw_mbps * 1e6 / 8 * 0.002))
        shell.run(
            *here, "tc", "qdisc", "add", "dev", name, "root", "handle", "5:", "htb", "default", "1"
        )
        shell.run(
            *here,
            "tc",
            "class",
            "add",
            "dev",
            name,
            "parent",
            "5:",
            "classid",
            "5:1",
            "htb",
            "rate",
            rate,
            "burst",
            str(burst),
        )
        parent = "parent 5:1"
    if backend == "netem":
        delay = max(0.0, (link.delay_ms or 0) - correction_ms)
        how = (
            ["delay", f"{delay:g}ms", *([f"{link.jitter_ms:g}ms"] if link.jitter_ms else [])]
            if delay
            else []
        )
        how += ["loss", f"{link.loss_pct:g}%"] if link.loss_pct else []
        shell.run(
            *here,
            "tc",
            "qdisc",
            "add",
            "dev",
            name,
            *parent.split(),
            "handle",
            "10:",
            "netem",
            *how,
            "limit",
            str(10 * packets),
        )
    elif link.bw_mbps is not None:
        shell.run(
            *here,
            "tc",
            "qdisc",
            "add",
            "dev",
            name,
            *parent.split(),
            "handle",
            "10:",
            "pfifo",
            "limit",
            str(packets),
        )


def _until(happened: Any, text: str, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > deadline:
            raise EdgecompressError(f"{text} within {seconds:g} s")
        time.sleep(0.02)


def measure(built: Built, third: int) -> None:
    """Fill in `measured`: round trip (ms), bandwidth of frames (Mbit/s, the worse way), loss (%),
    on addresses 169.254.`third`.0/30.
    """
    addresses = [f"169.254.{third}.{n}" for n in (1, 2)]
    for name, pid, address in zip(built.interfaces, built.pids, addresses, strict=True):
        shell.run(*shell.inside(pid), "ip", "addr", "add", f"{address}/30", "dev", name)
    try:
        built.measured = {"rtt_ms": round_trip(built, addresses[1])}
        ways = [(0, 1), (1, 0)]
        bandwidths = (
            [_bandwidth(built, one, other, addresses[other]) for one, other in ways]
            if built.link.bw_mbps
            else []
        )
        built.measured["bw_mbps"] = min(bandwidths) if bandwidths else None
        losses = [_loss(built, one, other, addresses[other]) for one, other in ways]
        built.measured["loss_pct"] = (
            100 * sum(lost for lost, _ in losses) / sum(sent for _, sent in losses)
        )
        built.measured["loss_low_pct"], built.measured["loss_high_pct"] = (
            100 * bound
            for bound in binomial_interval(
                sum(lost for lost, _ in losses), sum(sent for _, sent in losses)
            )
        )
    finally:
        for name, pid, address in zip(built.interfaces, built.pids, addresses, strict=True):
            shell.run(
                *shell.inside(pid), "ip", "addr", "del", f"{address}/30", "dev", name, check=False
            )


def round_trip(built: Built, address: str, count: int = 15) -> float | None:
    """Median of pings from the first end, in ms; the first one, which resolves the address, is left
    out. None when nothing comes back.
    """
    shell.run(
        *shell.inside(built.pids[0]),
        "ping",
        "-c",
        "2",
        "-i",
        "0.2",
        "-W",
        "2",
        address,
        check=False,
    )
    wait = max(2, math.ceil(4e-3 * ((built.link.delay_ms or 0) + (built.link.jitter_ms or 0))))
    said = shell.run(
        *shell.inside(built.pids[0]),
        "ping",
        "-c",
        str(count),
        "-i",
        "0.05",
        "-W",
        str(wait),
        address,
        check=False,
        timeout=90,
    )
    times = [float(value) for value in re.findall(r"time=([\d.]+) ms", said)]
    return round(statistics.median(times), 3) if times else None


def _paced(
    built: Built, one: int, other: int, address: str, packets: int, interval_us: float, size: int
) -> dict[str, Any]:
    """What arrives at end `other` of so many datagrams from end `one`."""
    seconds = packets * interval_us / 1e6 + 4 + 4e-3 * (built.link.delay_ms or 0)
    receive = shell.start(
        shell.inside(
            built.pids[other],
            sys.executable,
            "-I",
            "-S",
            PROBE,
            "receive",
            "7001",
            str(3 * seconds),
        ),
        stdout=subprocess.PIPE,
    )
    try:
        cast(IO[str], receive.stdout).readline()
        send = shell.inside(
            built.pids[one],
            sys.executable,
            "-I",
            "-S",
            PROBE,
            "send",
            address,
            "7001",
            str(packets),
            str(interval_us),
            str(size),
        )
        shell.run(*send, timeout=3 * seconds + 10)
        out, _ = receive.communicate(timeout=3 * seconds + 10)
        return dict(json.loads(out.strip().splitlines()[-1]))
    finally:
        shell.stop(receive)


def _bandwidth(built: Built, one: int, other: int, address: str) -> float:
    """Mbit/s of frames (headers counted) that arrive when more is sent than fits."""
    asked = built.link.bw_mbps or 0
    size = PAYLOAD if asked >= 1 else 300
    seconds = 1.0 if asked >= 20 else 1.5 if asked >= 5 else 3.0
    offered = 1.25 * asked * 1e6 / 8 / (size + HEADERS)
    packets = min(MOST_PACKETS, max(60, int(offered * seconds)))
    found = _paced(built, one, other, address, packets, 1e6 / offered, size)
    if not found["steady_s"]:
        return 0.0
    return float(
        8 * (found["steady_bytes"] + HEADERS * found["steady_packets"]) / found["steady_s"] / 1e6
    )


def _loss(built: Built, one: int, other: int, address: str) -> tuple[int, int]:
    """(lost, sent) of small datagrams, well below the link's bandwidth. When the asked loss is not
    in their interval, four times more.
    """
    asked = (built.link.loss_pct or 0) / 100
    packets = 600 if asked else 200
    rate = min(2000.0, 0.4 * (built.link.bw_mbps or 100) * 1e6 / 8 / (100 + HEADERS))
    for count in (packets, 4 * packets):
        lost = count - int(_paced(built, one, other, address, count, 1e6 / rate, 100)["received"])
        low, high = binomial_interval(lost, count)
        if low <= asked <= high:
            break
    return lost, count


def binomial_interval(hits: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, from `hits` of `count`."""
    share, spread = hits / count, Z * Z / count
    middle = (share + spread / 2) / (1 + spread)
    half = Z / (1 + spread) * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    return (0.0 if hits == 0 else max(0.0, middle - half)), (
        1.0 if hits == count else min(1.0, middle + half)
    )


def wrong(built: Built) -> str | None:
    """Why a measured link is not what was asked, in words; None when it is."""
    link, found = built.link, built.measured
    where = f"link {link.a} - {link.b} ({built.backend})"
    asked = 2 * (link.delay_ms or 0.0)
    if found["rtt_ms"] is None:
        return f"{where}: nothing comes back"
    slack = max(LEAST_MS, TOLERANCE * asked) + MEDIAN_SPREAD * (link.jitter_ms or 0)
    if abs(found["rtt_ms"] - asked) > slack:
        return (
            f"{where}: round trip {found['rtt_ms']:.2f} ms, asked {asked:g} ms (allowed "
            f"{slack:.2g} more or less)"
        )
    if link.bw_mbps is not None and abs((found["bw_mbps"] or 0) / link.bw_mbps - 1) > TOLERANCE:
        return (
            f"{where}: {found['bw_mbps']:.2f} Mbit/s, asked {link.bw_mbps:g} (allowed "
            f"{TOLERANCE:.0%} more or less)"
        )
    low, high = found["loss_low_pct"], found["loss_high_pct"]
    if not (low or 0) <= (link.loss_pct or 0) <= (high or 0):
        return (
            f"{where}: {found['loss_pct']:.2f} % lost (95 % interval {low:.2f} to "
            f"{high:.2f}), "
            f"asked {link.loss_pct or 0:g} %"
        )
    return None
