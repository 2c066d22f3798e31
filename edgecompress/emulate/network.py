"""A graph as network namespaces: the one module that uses Mininet, which is frozen upstream.

Only its nodes are used: a shell in a network namespace of its own, through `mnexec`. `Mininet()`
itself is never built, since it rewrites the host's sysctls; nor is `mn -c` called, which kills by
name. Switches are Linux bridges inside namespaces of their own, so that no firewall of the host
sees their frames. Everything ends with this process: shells lose their terminal, other children are
killed with their parent, and the interfaces of a namespace are deleted with its last process.
"""

from __future__ import annotations

import itertools
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from edgecompress.emulate import backends, cgroups, shell
from edgecompress.emulate import links as linking
from edgecompress.emulate.links import Built
from edgecompress.emulate.topology import Graph, Link
from edgecompress.errors import EdgecompressError, EnvironmentMissingError

SUBNET = "10.123.0"
"""Addresses of the hosts, inside the namespaces only."""
MEASUREMENTS = 4
"""How often a link is measured before it is refused: other work on the machine disturbs a
measurement, but a wrong link stays wrong.
"""
Note = Callable[[str], None]
"""Reports progress to the user, one line at a time."""
TEMPORARY = "edgecompress-"
"""How the temporary folders of a run begin; kind and process number follow."""
TEMPORARY_KINDS = ("net", "pcap", "tls")


class Node(Protocol):
    """A Mininet node: a shell in a network namespace of its own."""

    pid: int

    def terminate(self) -> None:
        """End the shell."""


@dataclass
class EmulatedNetwork:
    """Hosts and switches that run: their processes, links, addresses and control groups."""

    graph: Graph
    nodes: dict[str, Node] = field(default_factory=dict)
    built: list[Built] = field(default_factory=list)
    addresses: dict[str, str] = field(default_factory=dict)
    groups: dict[str, Path] = field(default_factory=dict)

    def pid(self, name: str) -> int:
        """A process inside the namespace of a node."""
        return int(self.nodes[name].pid)

    def access(self, host: str) -> tuple[Built, str]:
        """The link of a host, and the host's own interface on it."""
        built = next(b for b in self.built if host in (b.link.a, b.link.b))
        return built, built.end(host)[0]

    def command(self, host: str, *command: str) -> tuple[str, ...]:
        """`command` in the namespace of `host`, within the host's share of the processor."""
        inside = shell.inside(self.pid(host), *command)
        if host not in self.groups:
            return inside
        join = f'echo $$ > {self.groups[host]}/cgroup.procs && exec "$@"'
        return ("sh", "-c", join, "sh", *inside)


def prefix(run: int) -> str:
    """The prefix of the interface names of a run: at most 7 characters, so that a number fits into
    the 15 of a name.
    """
    return f"ec{run % 36**4:x}"


@contextmanager
def network(graph: Graph, backend: str, note: Note) -> Iterator[EmulatedNetwork]:
    """The running network of `graph`, every link measured and verified; it is removed afterwards.

    Raises `EnvironmentMissingError` when a link is not as requested, or cannot be built here.
    """
    new_node = _node_factory()
    remove_stale()
    net = EmulatedNetwork(graph)
    with tempfile.TemporaryDirectory(prefix=f"{TEMPORARY}net-{os.getpid()}-") as folder:
        try:
            for name in (*(host.name for host in graph.hosts), *graph.switches):
                net.nodes[name] = new_node(f"{prefix(os.getpid())}-{name}")
                disable_ipv6 = "sysctl -qw net.ipv6.conf.all.disable_ipv6=1"
                shell.run_inside(net.pid(name), disable_ipv6, check=False)
                shell.run_inside(net.pid(name), "ip link set lo up")
            builder = _Builder(net, Path(folder), note)
            for built in builder.links(backend):
                net.built.append(built)
            _bridge(net)
            _address_hosts(net)
            yield net
        finally:
            _take_down(net)


def _node_factory() -> Callable[[str], Node]:
    """What creates a Mininet node of a name. Raises `EnvironmentMissingError` without Mininet."""
    try:
        from mininet.log import setLogLevel
        from mininet.node import Node as MininetNode
    except ImportError as error:
        raise EnvironmentMissingError(
            "package 'mininet' is not installed: run pip install 'edgecompress[emulate]'"
        ) from error
    setLogLevel("error")
    logging.getLogger("mininet").setLevel(logging.ERROR)

    def new_node(name: str) -> Node:
        node: Node = MininetNode(name, inNamespace=True)
        return node

    return new_node


def _take_down(net: EmulatedNetwork) -> None:
    for built in net.built:
        built.end_children()
    for node in net.nodes.values():
        node.terminate()
    for group in net.groups.values():
        cgroups.remove(group)


class _Builder:
    """Builds and verifies the links of a network."""

    def __init__(self, net: EmulatedNetwork, folder: Path, note: Note) -> None:
        self.net = net
        self.folder = folder
        self.note = note
        self._numbers = itertools.count()

    def links(self, backend: str) -> Iterator[Built]:
        """Each link of the graph, verified."""
        graph = self.net.graph
        netem = any(link.filtered for link in graph.links) and backends.kernel_has_netem()
        for third, link in enumerate(graph.links, start=1):
            yield self._verified(link, backends.backend_for(link, backend, netem), third)

    def _verified(self, link: Link, backend: str, third: int) -> Built:
        """Build and measure one link, up to `MEASUREMENTS` times; then it is refused.

        The delay of the back end itself, once measured, is subtracted from that of the link.
        """
        correction_ms = 0.0
        built = self._build(link, backend, correction_ms)
        for attempt in range(1, MEASUREMENTS + 1):
            built = replace(built, measured=linking.measure(built, third))
            difference = linking.wrong(built)
            if difference is None:
                self._report(built)
                return built
            overhead_ms = _overhead_ms(built)
            if overhead_ms > 0 and not correction_ms and attempt < MEASUREMENTS:
                correction_ms = overhead_ms
                built.take_down()
                built = self._build(link, backend, correction_ms)
        built.take_down()
        raise EnvironmentMissingError(
            f"{difference}: the emulation does not start; try again on an idle machine, or "
            "request less"
        )

    def _build(self, link: Link, backend: str, correction_ms: float) -> Built:
        begin = prefix(os.getpid())
        names = (f"{begin}x{next(self._numbers)}", f"{begin}x{next(self._numbers)}")
        pids = (self.net.pid(link.a), self.net.pid(link.b))
        return backends.build(link, backend, names, pids, self.folder, correction_ms)

    def _report(self, built: Built) -> None:
        measured = built.measured
        if measured is None:
            return
        values = {
            "rtt_ms": measured["rtt_ms"],
            "bw_mbps": measured["bw_mbps"],
            "loss_pct": measured["loss_pct"],
        }
        known = [f"{key} {value:.4g}" for key, value in values.items() if value is not None]
        where = f"link {built.link.a} - {built.link.b} ({built.backend})"
        self.note(f"{where}: {', '.join(known)}")


def _overhead_ms(built: Built) -> float:
    """Milliseconds by which each direction of a measured link is slower than requested, at most
    its requested delay; 0 without a round trip.
    """
    if built.measured is None or built.measured["rtt_ms"] is None:
        return 0.0
    delay_ms = built.link.delay_ms or 0.0
    excess_ms = (built.measured["rtt_ms"] - 2 * delay_ms) / 2
    # wirefilter delays by whole milliseconds
    return min(delay_ms, round(excess_ms) if built.backend == "wirefilter" else excess_ms)


def _bridge(net: EmulatedNetwork) -> None:
    """Join the links at each switch by a bridge."""
    for switch in net.graph.switches:
        pid = net.pid(switch)
        shell.run_inside(pid, "ip link add br0 type bridge stp_state 0 forward_delay 0")
        for built in net.built:
            if switch in (built.link.a, built.link.b):
                shell.run_inside(pid, f"ip link set {built.end(switch)[0]} master br0")
        shell.run_inside(pid, "ip link set br0 up")


def _address_hosts(net: EmulatedNetwork) -> None:
    """Give each host its address, those of all others, and its share of the processor."""
    hardware = {}
    for number, host in enumerate(net.graph.hosts, start=1):
        address = f"{SUBNET}.{number}"
        net.addresses[host.name] = address
        interface = net.access(host.name)[1]
        shell.run_inside(net.pid(host.name), f"ip addr add {address}/24 dev {interface}")
        hardware[host.name] = hardware_address(net, host.name)
        if host.cpu is not None:
            net.groups[host.name] = cgroups.create(host.name, host.cpu)
    for host, neighbour in itertools.permutations(net.graph.hosts, 2):
        set_neighbour(net, host.name, neighbour.name, hardware[neighbour.name])


def hardware_address(net: EmulatedNetwork, host: str) -> str:
    """The hardware address of a host's interface."""
    interface = net.access(host)[1]
    output = shell.run_inside(net.pid(host), f"ip -o link show dev {interface}")
    return output.split("link/ether ")[1].split()[0]


def set_neighbour(net: EmulatedNetwork, host: str, neighbour: str, hardware: str) -> None:
    """Enter the hardware address of `neighbour` at `host`, so that no ARP request is needed."""
    address = net.addresses[neighbour]
    interface = net.access(host)[1]
    shell.run_inside(net.pid(host), f"ip neigh replace {address} lladdr {hardware} dev {interface}")


def remove_stale() -> None:
    """Remove control groups and temporary folders (captures, keys) of our own runs whose process
    has ended.
    """
    cgroups.remove_stale()
    for folder in Path(tempfile.gettempdir()).glob(f"{TEMPORARY}*-*-*"):
        kind, pid, *_ = folder.name.removeprefix(TEMPORARY).split("-")
        ours = (
            kind in TEMPORARY_KINDS
            and folder.is_dir()
            and not folder.is_symlink()
            and folder.stat().st_uid == os.geteuid()
        )
        if ours and pid.isdigit() and not shell.alive(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def check_network(net: EmulatedNetwork) -> None:
    """Raises `EdgecompressError` when a student cannot reach the first teacher."""
    teacher = net.graph.of_role("teacher")[0]
    for student in net.graph.of_role("student"):
        output = shell.run_inside(
            net.pid(student.name),
            f"ping -c 5 -i 0.2 -W 5 {net.addresses[teacher.name]}",
            check=False,
        )
        if " 0 received" in output or "received" not in output:
            raise EdgecompressError(
                f"student '{student.name}' does not reach teacher '{teacher.name}': all pings "
                "were lost"
            )
