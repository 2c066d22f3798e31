"""A graph as namespaces: the one module that uses Mininet, which is frozen upstream.

Only its nodes are used: a shell in a network namespace of its own, through `mnexec`. `Mininet()`
itself is never built, since it rewrites the host's sysctls; nor is `mn -c` called, which kills by
name. Switches are Linux bridges inside namespaces of their own, so that no firewall of the host
sees their frames. Everything ends with this process: shells lose their terminal, other children are
killed with their parent, and with a namespace's last process its interfaces go.
"""

from __future__ import annotations

import itertools
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgecompress.emulate import links as linking
from edgecompress.emulate import shell
from edgecompress.emulate.links import Built
from edgecompress.emulate.topology import Graph, Host, Link
from edgecompress.errors import EdgecompressError, EnvironmentMissingError

NETWORK = "10.123.0"
"""Addresses of the hosts, inside the namespaces only."""
MEASUREMENTS = 4
"""How often a link is measured before it is refused: other work on the machine disturbs a
measurement, a wrong link stays wrong.
"""
Note = Callable[[str], None]
_CGROUPS = Path("/sys/fs/cgroup")
LEFT = "edgecompress-"
"""How temporary folders of a run begin; kind and process number follow."""


@dataclass
class Network:
    """Hosts and switches that stand, by name: their processes, addresses and interfaces."""

    graph: Graph
    nodes: dict[str, Any] = field(default_factory=dict)
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
        """`command` in the namespace of `host`, within its share of the processor."""
        entered = shell.inside(self.pid(host), *command)
        if host not in self.groups:
            return entered
        return (
            "sh",
            "-c",
            f'echo $$ > {self.groups[host]}/cgroup.procs && exec "$@"',
            "sh",
            *entered,
        )


def prefix(run: int) -> str:
    """Begin of the names of a run's interfaces: at most 7 characters, so that 15 are enough with a
    number.
    """
    return f"ec{run % 36**4:x}"


@contextmanager
def network(graph: Graph, backend: str, note: Note) -> Iterator[Network]:
    """The network of `graph`, every link measured and found right; it is gone afterwards.

    Raises `EnvironmentMissingError` when a link is not what was asked, or cannot be made here.
    """
    try:
        from mininet.log import setLogLevel
        from mininet.node import Node
    except ImportError as error:
        raise EnvironmentMissingError(
            "package 'mininet' is not installed: run pip install 'edgecompress[emulate]'"
        ) from error
    setLogLevel("error")
    logging.getLogger("mininet").setLevel(logging.ERROR)
    forget_the_dead()
    net = Network(graph)
    begin = prefix(os.getpid())
    with tempfile.TemporaryDirectory(prefix=f"{LEFT}net-{os.getpid()}-") as name:
        folder = Path(name)
        try:
            for node in (*(host.name for host in graph.hosts), *graph.switches):
                net.nodes[node] = Node(f"{begin}-{node}", inNamespace=True)
                shell.run(
                    *shell.inside(net.pid(node)),
                    "sysctl",
                    "-qw",
                    "net.ipv6.conf.all.disable_ipv6=1",
                    check=False,
                )
                shell.run(*shell.inside(net.pid(node)), "ip", "link", "set", "lo", "up")
            netem = (
                linking.kernel_has_netem() if any(link.filtered for link in graph.links) else False
            )
            numbers = itertools.count()
            for third, link in enumerate(graph.links, start=1):
                kind = linking.backend_for(link, backend, netem)
                net.built.append(
                    _right(
                        link,
                        kind,
                        begin,
                        numbers,
                        (net.pid(link.a), net.pid(link.b)),
                        folder,
                        third,
                        note,
                    )
                )
            _join(net)
            yield net
        finally:
            for built in net.built:
                for child in built.children:
                    child.kill()
                    child.wait(5)
            for node in net.nodes.values():
                node.terminate()
            for group in net.groups.values():
                _remove(group)


def _right(
    link: Link,
    kind: str,
    begin: str,
    numbers: Iterator[int],
    pids: tuple[int, int],
    folder: Path,
    third: int,
    note: Note,
) -> Built:
    """Build and measure one link, its back end's own overhead taken off the delay; up to
    `MEASUREMENTS` times, then it is refused.
    """
    correction, built = 0.0, None
    for _ in range(MEASUREMENTS):
        if built is None:
            names = (f"{begin}x{next(numbers)}", f"{begin}x{next(numbers)}")
            built = linking.build(link, kind, names, pids, folder, correction)
        linking.measure(built, third)
        fault = linking.wrong(built)
        if fault is None:
            break
        excess = (built.measured["rtt_ms"] or 0) - 2 * (link.delay_ms or 0)
        # wirefilter delays by whole milliseconds
        taken_off = min(
            link.delay_ms or 0.0, round(excess / 2) if kind == "wirefilter" else excess / 2
        )
        if built.measured["rtt_ms"] is not None and taken_off > 0 and not correction:
            correction = taken_off
            _take_down(built)
            built = None
    if built is None or fault is not None:
        if built is not None:
            _take_down(built)
        raise EnvironmentMissingError(
            f"{fault}: the emulation does not start; try again on an idle machine, or ask for less"
        )
    known = {
        key: value
        for key, value in built.measured.items()
        if value is not None and not key.startswith(("loss_low", "loss_high"))
    }
    note(
        f"link {link.a} - {link.b} ({kind}): "
        + ", ".join(f"{key} {value:.4g}" for key, value in known.items())
    )
    return built


def _take_down(built: Built) -> None:
    for child in built.children:
        child.kill()
        child.wait(5)
    for name, pid in zip(built.interfaces, built.pids, strict=True):
        shell.run(*shell.inside(pid), "ip", "link", "del", name, check=False)


def _join(net: Network) -> None:
    """Bridge the ends at switches, give hosts their addresses and each other's, and their share of
    the processor.
    """
    for switch in net.graph.switches:
        here = shell.inside(net.pid(switch))
        shell.run(
            *here,
            "ip",
            "link",
            "add",
            "br0",
            "type",
            "bridge",
            "stp_state",
            "0",
            "forward_delay",
            "0",
        )
        for built in net.built:
            if switch in (built.link.a, built.link.b):
                shell.run(*here, "ip", "link", "set", built.end(switch)[0], "master", "br0")
        shell.run(*here, "ip", "link", "set", "br0", "up")
    hardware = {}
    for number, host in enumerate(net.graph.hosts, start=1):
        name, pid = net.access(host.name)[1], net.pid(host.name)
        net.addresses[host.name] = f"{NETWORK}.{number}"
        shell.run(*shell.inside(pid), "ip", "addr", "add", f"{NETWORK}.{number}/24", "dev", name)
        said = shell.run(*shell.inside(pid), "ip", "-o", "link", "show", "dev", name)
        hardware[host.name] = said.split("link/ether ")[1].split()[0]
        if host.cpu is not None:
            net.groups[host.name] = _group(host)
    for host, other in itertools.permutations(net.graph.hosts, 2):
        name, pid = net.access(host.name)[1], net.pid(host.name)
        shell.run(
            *shell.inside(pid),
            "ip",
            "neigh",
            "replace",
            net.addresses[other.name],
            "lladdr",
            hardware[other.name],
            "dev",
            name,
        )


def _group(host: Host) -> Path:
    """A control group that gives `host` its share of one core, named after this process."""
    name, period = f"edgecompress-{os.getpid()}-{host.name}", 100_000
    first, second = _CGROUPS / "cpu", _CGROUPS / "cgroup.controllers"
    quota = int(period * (host.cpu or 1))
    try:
        if first.is_dir():
            group = first / name
            group.mkdir()
            (group / "cpu.cfs_period_us").write_text(str(period))
            (group / "cpu.cfs_quota_us").write_text(str(quota))
        elif second.is_file() and "cpu" in second.read_text().split():
            group = _CGROUPS / name
            group.mkdir()
            (group / "cpu.max").write_text(f"{quota} {period}")
        else:
            raise EnvironmentMissingError(
                f"host '{host.name}' asks for cpu {host.cpu:g}, and there is no cpu cgroup "
                "here: leave cpu out"
            )
    except OSError as error:
        raise EnvironmentMissingError(
            f"host '{host.name}' asks for cpu {host.cpu:g}, and cgroups refuse it: {error.strerror}"
        ) from error
    return group


def forget_the_dead() -> None:
    """Remove control groups and temporary folders (captures, keys) of runs whose process is gone;
    nothing of anyone else's.
    """
    for root in (_CGROUPS / "cpu", _CGROUPS):
        for group in root.glob("edgecompress-*-*"):
            parts = group.name.split("-")
            if group.is_dir() and parts[1].isdigit() and not shell.alive(int(parts[1])):
                _remove(group)
    for folder in Path(tempfile.gettempdir()).glob(f"{LEFT}*-*-*"):
        kind, pid, *_ = folder.name.removeprefix(LEFT).split("-")
        ours = (
            kind in ("net", "pcap", "tls")
            and folder.is_dir()
            and not folder.is_symlink()
            and folder.stat().st_uid == os.geteuid()
        )
        if ours and pid.isdigit() and not shell.alive(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def _remove(group: Path) -> None:
    try:
        group.rmdir()
    except OSError:
        return


def check_network(net: Network) -> None:
    """Raises `EdgecompressError` when a student cannot reach its teacher."""
    teacher = net.graph.of_role("teacher")[0]
    for student in net.graph.of_role("student"):
        said = shell.run(
            *shell.inside(net.pid(student.name)),
            "ping",
            "-c",
            "5",
            "-i",
            "0.2",
            "-W",
            "5",
            net.addresses[teacher.name],
            check=False,
        )
        if " 0 received" in said or "received" not in said:
            raise EdgecompressError(
                f"student '{student.name}' does not reach teacher '{teacher.name}': every "
                "ping was lost"
            )
