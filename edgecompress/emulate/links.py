"""A link between two namespaces, and the proof that it does what was requested.

A link is measured on its own, before it joins a switch: ping, and paced UDP in both directions. It
is used only if its round trip, bandwidth and loss are those requested.
"""

from __future__ import annotations

import json
import math
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypedDict, cast

from edgecompress.emulate import shell
from edgecompress.emulate.schema import LinkRow, Measurement
from edgecompress.emulate.topology import Link
from edgecompress.errors import EdgecompressError

HEADERS = 42
"""Bytes of Ethernet, IP and UDP headers around the payload of a datagram."""
PAYLOAD = 1400
PROBE = str(Path(__file__).with_name("probe.py"))
PROBE_PORT = "7001"
TOLERANCE = 0.10
"""Share by which the round trip and the bandwidth of a link may be off."""
LEAST_MS = 1.0
"""Milliseconds by which the round trip may always be off."""
MEDIAN_SPREAD = 0.8
"""The median of 15 round trips, each with twice a uniform jitter of 1 ms more or less, is off by
more only once in 400 times.
"""
Z = 1.96
MOST_PACKETS = 120_000
"""Datagrams of one measurement of bandwidth: a second of 1.1 Gbit/s. Faster links are measured over
a shorter time.
"""


class Arrivals(TypedDict):
    """What the receiving probe counts; the steady part leaves out the first third."""

    received: int
    duplicates: int
    steady_bytes: int
    steady_packets: int
    steady_s: float


@dataclass(frozen=True)
class Built:
    """A link that was built: the interface of each end, in the namespace of a process, and the
    children that carry its frames.
    """

    link: Link
    backend: str
    interfaces: tuple[str, str]
    pids: tuple[int, int]
    children: tuple[subprocess.Popen[str], ...] = ()
    measured: Measurement | None = None

    def end(self, node: str) -> tuple[str, int]:
        """The (interface, pid) of the end at `node`."""
        side = 0 if self.link.a == node else 1
        return self.interfaces[side], self.pids[side]

    def row(self) -> LinkRow:
        """The link in `result.json`."""
        return {
            "a": self.link.a,
            "b": self.link.b,
            "backend": self.backend,
            "configured": self.link.configured(),
            "measured": self.measured,
        }

    def take_down(self) -> None:
        """End the children of the link and delete its interfaces."""
        self.end_children()
        for name, pid in zip(self.interfaces, self.pids, strict=True):
            shell.run_inside(pid, f"ip link del {name}", check=False)

    def end_children(self) -> None:
        """End the children of the link."""
        for child in self.children:
            child.kill()
            child.wait(5)


def measure(built: Built, third: int) -> Measurement:
    """Measure a link, with the addresses 169.254.`third`.0/30 for as long as it takes."""
    addresses = (f"169.254.{third}.1", f"169.254.{third}.2")
    with _addressed(built, addresses):
        rtt_ms = round_trip(built, addresses[1])
        bandwidth = None
        if built.link.bw_mbps:
            bandwidth = min(
                _bandwidth(built, 0, 1, addresses[1]), _bandwidth(built, 1, 0, addresses[0])
            )
        forward = _loss(built, 0, 1, addresses[1])
        backward = _loss(built, 1, 0, addresses[0])
    lost = forward[0] + backward[0]
    sent = forward[1] + backward[1]
    low, high = binomial_interval(lost, sent)
    return {
        "rtt_ms": rtt_ms,
        "bw_mbps": bandwidth,
        "loss_pct": 100 * lost / sent,
        "loss_low_pct": 100 * low,
        "loss_high_pct": 100 * high,
    }


@contextmanager
def _addressed(built: Built, addresses: tuple[str, str]) -> Iterator[None]:
    """Give the ends of a link their `addresses`, and take them away afterwards."""
    ends = list(zip(built.interfaces, built.pids, addresses, strict=True))
    for name, pid, address in ends:
        shell.run_inside(pid, f"ip addr add {address}/30 dev {name}")
    try:
        yield
    finally:
        for name, pid, address in ends:
            shell.run_inside(pid, f"ip addr del {address}/30 dev {name}", check=False)


def round_trip(built: Built, address: str, count: int = 15) -> float | None:
    """Median of `count` pings from the first end, in milliseconds; None without any reply.

    Pings before them resolve the address and are left out.
    """
    shell.run_inside(built.pids[0], f"ping -c 2 -i 0.2 -W 2 {address}", check=False)
    delay_ms = (built.link.delay_ms or 0) + (built.link.jitter_ms or 0)
    wait_s = max(2, math.ceil(4e-3 * delay_ms))
    output = shell.run_inside(
        built.pids[0], f"ping -c {count} -i 0.05 -W {wait_s} {address}", check=False, timeout=90
    )
    times = [float(value) for value in re.findall(r"time=([\d.]+) ms", output)]
    return round(statistics.median(times), 3) if times else None


def _paced(
    built: Built,
    sender: int,
    receiver: int,
    address: str,
    packets: int,
    interval_us: float,
    size: int,
) -> Arrivals:
    """What arrives at the end `receiver` (0 or 1) of `packets` datagrams of `size` bytes, sent by
    the end `sender` to `address`, one every `interval_us`.
    """
    seconds = packets * interval_us / 1e6 + 4 + 4e-3 * (built.link.delay_ms or 0)
    program = (sys.executable, "-I", "-S", PROBE)
    receiving = shell.start(
        shell.inside(built.pids[receiver], *program, "receive", PROBE_PORT, str(3 * seconds)),
        stdout=subprocess.PIPE,
    )
    sending = None
    try:
        cast(IO[str], receiving.stdout).readline()
        pace = (str(packets), str(interval_us), str(size))
        sending = shell.start(
            shell.inside(built.pids[sender], *program, "send", address, PROBE_PORT, *pace),
            stderr=subprocess.PIPE,
        )
        # it repeats the datagram that ends the measurement until it is stopped
        output, _ = receiving.communicate(timeout=3 * seconds + 10)
        if sending.poll():
            message = " ".join(cast(IO[str], sending.stderr).read().split())
            raise EdgecompressError(f"datagrams to {address} cannot be sent: {message[-300:]}")
        return cast(Arrivals, json.loads(output.strip().splitlines()[-1]))
    finally:
        for child in (sending, receiving):
            if child is not None:
                shell.stop(child)


def _bandwidth(built: Built, sender: int, receiver: int, address: str) -> float:
    """Mbit/s of frames, headers included, that arrive when more is sent than fits."""
    requested = built.link.bw_mbps or 0
    size = PAYLOAD if requested >= 1 else 300
    seconds = 1.0 if requested >= 20 else 1.5 if requested >= 5 else 3.0
    rate = 1.25 * requested * 1e6 / 8 / (size + HEADERS)
    packets = min(MOST_PACKETS, max(60, int(rate * seconds)))
    arrivals = _paced(built, sender, receiver, address, packets, 1e6 / rate, size)
    if not arrivals["steady_s"]:
        return 0.0
    frames = arrivals["steady_bytes"] + HEADERS * arrivals["steady_packets"]
    return 8 * frames / arrivals["steady_s"] / 1e6


def _loss(built: Built, sender: int, receiver: int, address: str) -> tuple[int, int]:
    """(lost, sent) of small datagrams, well below the bandwidth of the link.

    Four times as many are sent when the requested loss is outside the interval of the first ones.
    """
    requested = (built.link.loss_pct or 0) / 100
    packets = 600 if requested else 200
    rate = min(2000.0, 0.4 * (built.link.bw_mbps or 100) * 1e6 / 8 / (100 + HEADERS))
    for count in (packets, 4 * packets):
        arrivals = _paced(built, sender, receiver, address, count, 1e6 / rate, 100)
        lost = count - arrivals["received"]
        low, high = binomial_interval(lost, count)
        if low <= requested <= high:
            break
    return lost, count


def binomial_interval(hits: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share from `hits` of `count` (Wilson, 1927)."""
    share = hits / count
    spread = Z * Z / count
    middle = (share + spread / 2) / (1 + spread)
    half = Z / (1 + spread) * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    low = 0.0 if hits == 0 else max(0.0, middle - half)
    high = 1.0 if hits == count else min(1.0, middle + half)
    return low, high


def wrong(built: Built) -> str | None:
    """How a measured link differs from what was requested, as one line; None if it does not."""
    link = built.link
    measured = built.measured
    where = f"link {link.a} - {link.b} ({built.backend})"
    if measured is None or measured["rtt_ms"] is None:
        return f"{where}: no ping returns"

    rtt_ms = 2 * (link.delay_ms or 0.0)
    slack_ms = max(LEAST_MS, TOLERANCE * rtt_ms) + MEDIAN_SPREAD * (link.jitter_ms or 0)
    if abs(measured["rtt_ms"] - rtt_ms) > slack_ms:
        return (
            f"{where}: round trip {measured['rtt_ms']:.2f} ms, requested {rtt_ms:g} ms (allowed "
            f"+/- {slack_ms:.2g})"
        )

    bandwidth = measured["bw_mbps"] or 0
    if link.bw_mbps is not None and abs(bandwidth / link.bw_mbps - 1) > TOLERANCE:
        return (
            f"{where}: {bandwidth:.2f} Mbit/s, requested {link.bw_mbps:g} (allowed "
            f"+/- {TOLERANCE:.0%})"
        )

    low, high = measured["loss_low_pct"], measured["loss_high_pct"]
    if not low <= (link.loss_pct or 0) <= high:
        return (
            f"{where}: {measured['loss_pct']:.2f} % lost (95 % interval {low:.2f} to "
            f"{high:.2f}), requested {link.loss_pct or 0:g} %"
        )
    return None
