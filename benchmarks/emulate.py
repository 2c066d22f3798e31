"""Emulation and lessons between machines, measured. As root.

    # delay and bandwidth of links, a capture at 100 Mbit/s; 3 minutes
    sudo python benchmarks/emulate.py --links
    # steps per second at 0 and at 100 ms of round trip; 3 minutes
    sudo python benchmarks/emulate.py --hiding
    # codecs, and the reference in one process, three seeds; 10 minutes
    sudo python benchmarks/emulate.py --lessons 3
    # mutual learning at 100 ms of round trip, staleness 0 and 16; 4 minutes
    sudo python benchmarks/emulate.py --mutual

Data: digits (demo); accuracies on its 359 test images, one image is 0.28 points. Results go to
benchmarks/results/emulate.json.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path

from common import Bench, Row, bench_of, parser
from edgecompress.emulate import links as linking
from edgecompress.emulate import shell
from edgecompress.emulate.capture import Capture, capture
from edgecompress.emulate.network import EmulatedNetwork, network
from edgecompress.emulate.topology import Graph, graph_from
from lessons import hiding, lessons, mutual

PAYLOAD = 1400
"""Bytes of a datagram of the capture under load."""


def pair(link: Mapping[str, object]) -> Graph:
    """Two hosts and one link."""
    hosts = {"a": {"role": "teacher"}, "b": {"role": "student"}}
    links = [("a", "b", link)]
    return graph_from({"name": "pair", "hosts": hosts, "switches": {}, "links": links})


def built(link: Mapping[str, object]) -> Row:
    """Build a link once, and measure it."""
    with network(pair(link), "auto", lambda _: None) as net:
        return dict(net.built[0].row())


def links(bench: Bench) -> None:
    """What links do against what was requested, and a capture under load."""
    delayed: list[Row] = [{"delay": f"{ms}ms", "bw": 100} for ms in (1, 10, 100)]
    limited: list[Row] = [{"bw": mbit} for mbit in (1, 10, 100)]
    rows: list[Row] = []
    for link in bench.size([*delayed, *limited], delayed[-1:]):
        rows.append(link_row(link, bench.size(3, 1)))
        print(rows[-1], flush=True)
        bench.store(links={"command": bench.command("--links"), "rows": rows}, **bench.machine())
    capture_under_load(bench)


def link_row(link: Row, repeats: int) -> Row:
    """Medians of a link that is built anew `repeats` times."""
    taken = [built(link) for _ in range(repeats)]
    median = {
        key: statistics.median(row["measured"][key] for row in taken)
        for key in ("rtt_ms", "bw_mbps")
    }
    delay = float(str(link.get("delay", "0ms")).removesuffix("ms"))
    return {
        "asked": link,
        "backend": taken[0]["backend"],
        "measured": median,
        "repeats": repeats,
        "rtt_off_ms": median["rtt_ms"] - 2 * delay,
        "bw_off": median["bw_mbps"] / link["bw"] - 1,
    }


def capture_under_load(bench: Bench) -> None:
    """Captures at both ends of a link of 100 Mbit/s while 105 Mbit/s are sent."""
    seconds = bench.size(6.0, 1.0)
    packets = int(105e6 / 8 / (PAYLOAD + linking.HEADERS) * seconds)
    with (
        tempfile.TemporaryDirectory() as name,
        network(pair({"bw": 100}), "auto", lambda _: None) as net,
    ):
        captures = both_ends(net, Path(name))
        link = net.built[0]
        linking.measure(link, 9)
        interval_us = seconds * 1e6 / packets
        address = net.addresses["b"]
        received = linking._paced(link, 0, 1, address, packets, interval_us, PAYLOAD)["received"]
        for one in captures:
            one.stop()
    load = {
        "seconds": seconds,
        "mbps": 8 * packets * (PAYLOAD + linking.HEADERS) / seconds / 1e6,
        "received": received,
        "captured": [one.captured for one in captures],
        "kernel_dropped": [one.dropped for one in captures],
    }
    print(load)
    bench.store(capture_under_load={"command": bench.command("--links"), **load})


def both_ends(net: EmulatedNetwork, folder: Path) -> list[Capture]:
    """Captures at both hosts."""
    return [
        capture(host, net.access(host)[1], net.pid(host), folder / f"{host}.pcap")
        for host in ("a", "b")
    ]


def main() -> None:
    """Run the parts that the options select."""
    options = parser(__doc__)
    options.add_argument("--links", action="store_true")
    options.add_argument("--hiding", action="store_true")
    options.add_argument("--lessons", type=int, default=0, metavar="SEEDS")
    options.add_argument("--mutual", action="store_true")
    arguments = options.parse_args()
    bench = bench_of(__file__, arguments)
    shell.needed()
    if arguments.links:
        links(bench)
    if arguments.hiding:
        hiding(bench)
    if arguments.mutual:
        mutual(bench)
    if arguments.lessons:
        lessons(bench, arguments.lessons)


if __name__ == "__main__":
    main()
