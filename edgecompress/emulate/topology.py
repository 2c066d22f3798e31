"""A topology file becomes a plain graph: hosts with roles, switches, links with their properties;
checked before anything is built.

The file is code (a `mininet.topo.Topo` subclass, with `topos`, so that `mn --custom` takes it too).
It runs in a process of its own, as the invoking user: `python -m edgecompress.emulate.topology
FILE` prints the graph as JSON, and only that JSON reaches root.

Hosts: `role` (teacher, student; none for others), `model`, `cpu` (share of one core). Links: `bw`
(Mbit/s), `delay` and `jitter` (one way, with unit: 10ms), `loss` (%).
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgecompress.errors import UnknownNameError, UsageError
from edgecompress.units import parse_duration

ROLES = ("teacher", "student")
HOST_KEYS = {"role", "model", "cpu"}
SWITCH_KEYS = frozenset({"dpid"})
LINK_KEYS = {"bw", "delay", "jitter", "loss"}
PROFILES: dict[str, dict[str, Any]] = {
    "ethernet": {"bw": 100, "delay": "1ms"},
    "wifi": {"bw": 30, "delay": "3ms", "jitter": "2ms", "loss": 0.5},
    "lte": {"bw": 12, "delay": "25ms", "jitter": "5ms", "loss": 0.1},
    "3g": {"bw": 2, "delay": "75ms", "jitter": "10ms", "loss": 0.5},
    "satellite": {"bw": 10, "delay": "300ms"},
}
"""Named links, for `--link`: typical values, not measured ones."""
BANDWIDTH = (0.1, 10_000.0)
"""Mbit/s that a link may have."""
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,30}")


@dataclass(frozen=True)
class Host:
    """A host; `role` is teacher, student or empty, `cpu` a share of one core or None."""

    name: str
    role: str = ""
    model: str | None = None
    cpu: float | None = None


@dataclass(frozen=True)
class Link:
    """A link between two nodes. None: not limited, not delayed, not lost."""

    a: str
    b: str
    bw_mbps: float | None = None
    delay_ms: float | None = None
    jitter_ms: float | None = None
    loss_pct: float | None = None

    @property
    def filtered(self) -> bool:
        """Does it need more than a limit of its bandwidth?"""
        return any((self.delay_ms, self.jitter_ms, self.loss_pct))

    def configured(self) -> dict[str, float | None]:
        """What was asked of it."""
        return {
            "bw_mbps": self.bw_mbps,
            "delay_ms": self.delay_ms,
            "jitter_ms": self.jitter_ms,
            "loss_pct": self.loss_pct,
        }


@dataclass(frozen=True)
class Graph:
    """A whole topology."""

    name: str
    hosts: tuple[Host, ...]
    switches: tuple[str, ...]
    links: tuple[Link, ...]

    def of_role(self, role: str) -> list[Host]:
        """The hosts with a role."""
        return [host for host in self.hosts if host.role == role]

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def graph_from(values: Mapping[str, Any], link: Mapping[str, Any] | None = None) -> Graph:
    """The checked graph of `{"name", "hosts": {name: params}, "switches": {name: params}, "links":
    [[a, b, params], ...]}`.

    `link` are properties for every link, over its own. Raises `UsageError` naming the first thing
    that is wrong.
    """
    hosts = tuple(_host(name, params) for name, params in values["hosts"].items())
    for name, params in values["switches"].items():
        unknown = set(params) - SWITCH_KEYS
        if unknown:
            raise UsageError(
                f"switch '{name}': unknown key '{min(unknown)}': allowed is "
                f"{', '.join(SWITCH_KEYS)}, which mn wants"
            )
    switches = tuple(str(name) for name in values["switches"])
    names = [host.name for host in hosts] + list(switches)
    for name in names:
        if not NAME.fullmatch(name) or names.count(name) > 1:
            raise UsageError(
                f"node '{name}': a name has letters, digits, - and _, begins with a letter, "
                "and is there once"
            )
    links = tuple(
        _link(str(a), str(b), {**params, **(link or {})}, names) for a, b, params in values["links"]
    )
    graph = Graph(str(values["name"]), hosts, switches, links)
    if not graph.of_role("teacher"):
        raise UsageError(f"topology '{graph.name}' has no teacher: give a host role='teacher'")
    if not graph.of_role("student"):
        raise UsageError(f"topology '{graph.name}' has no student: give a host role='student'")
    if len(graph.of_role("teacher")) > len(graph.of_role("student")):
        raise UsageError(
            f"topology '{graph.name}' has a teacher without a student: give at least as many "
            "students as teachers"
        )
    _check_tree(graph)
    return graph


def _host(name: str, params: Mapping[str, Any]) -> Host:
    unknown = set(params) - HOST_KEYS
    if unknown:
        raise UsageError(
            f"host '{name}': unknown key '{min(unknown)}': allowed are "
            f"{', '.join(sorted(HOST_KEYS))}"
        )
    role, cpu = str(params.get("role") or ""), params.get("cpu")
    if role and role not in ROLES:
        raise UsageError(
            f"host '{name}': role '{role}' is not known: allowed are {', '.join(ROLES)}"
        )
    if cpu is not None and (not _number(cpu) or not 0.01 <= cpu <= 1024):
        raise UsageError(
            f"host '{name}': cpu {cpu!r} is no share of a core: give a number from 0.01 on, "
            "e.g. 0.5"
        )
    if name == "ca":
        raise UsageError(
            "host 'ca': the run's certificate authority is called so: give another name"
        )
    model = params.get("model")
    return Host(
        name, role, None if model is None else str(model), None if cpu is None else float(cpu)
    )


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _link(a: str, b: str, params: Mapping[str, Any], names: list[str]) -> Link:
    where = f"link {a} - {b}"
    for end in (a, b):
        if end not in names:
            raise UsageError(f"{where}: no node '{end}'")
    unknown = set(params) - LINK_KEYS
    if unknown:
        raise UsageError(
            f"{where}: unknown key '{min(unknown)}': allowed are {', '.join(sorted(LINK_KEYS))}"
        )
    bandwidth, loss = params.get("bw"), params.get("loss")
    low, high = BANDWIDTH
    if bandwidth is not None and (not _number(bandwidth) or not low <= bandwidth <= high):
        raise UsageError(
            f"{where}: bw {bandwidth!r} is outside {low:g}..{high:g} Mbit/s: give a number "
            "of Mbit/s"
        )
    if loss is not None and (not _number(loss) or not 0 <= loss <= 50):
        raise UsageError(f"{where}: loss {loss!r} is outside 0..50 %: give a number of percent")
    times = {}
    for key in ("delay", "jitter"):
        value = params.get(key)
        if value is not None and not isinstance(value, str):
            raise UsageError(f"{where}: {key} {value!r} has no unit: write it like '10ms'")
        times[key] = None if value in (None, "0ms", "0s") else 1e3 * parse_duration(str(value))
        if (times[key] or 0) > 10_000:
            raise UsageError(f"{where}: {key} {value!r} is above 10s")
    if times["jitter"] and (times["delay"] is None or times["jitter"] > times["delay"]):
        raise UsageError(
            f"{where}: jitter {params['jitter']} is more than the delay it varies: give a "
            "delay at least as long"
        )
    return Link(
        a,
        b,
        None if bandwidth is None else float(bandwidth),
        times["delay"],
        times["jitter"],
        None if not loss else float(loss),
    )


def _check_tree(graph: Graph) -> None:
    """Every node is reached, and there is one way only: bridges here have no spanning tree."""
    neighbours: dict[str, list[str]] = {
        name: [] for name in (*(h.name for h in graph.hosts), *graph.switches)
    }
    for link in graph.links:
        if link.a == link.b:
            raise UsageError(f"link {link.a} - {link.b} joins a node to itself")
        neighbours[link.a].append(link.b)
        neighbours[link.b].append(link.a)
    for host in graph.hosts:
        if len(neighbours[host.name]) != 1:
            raise UsageError(
                f"host '{host.name}' has {len(neighbours[host.name])} links: a host has one; "
                "put a switch between"
            )
    seen, waiting = set[str](), [graph.hosts[0].name]
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            waiting += neighbours[node]
    if len(seen) < len(neighbours):
        raise UsageError(
            f"node '{min(set(neighbours) - seen)}' is not reached from "
            f"'{graph.hosts[0].name}': add a link"
        )
    if len(graph.links) != len(neighbours) - 1:
        raise UsageError(
            f"topology '{graph.name}' has a loop: {len(graph.links)} links join "
            f"{len(neighbours)} nodes"
        )


def profile(name: str) -> dict[str, Any]:
    """All properties of a named link, None where it has none. Raises `UsageError` for an unknown
    name.
    """
    if name not in PROFILES:
        raise UnknownNameError("link", name, PROFILES)
    return {**dict.fromkeys(sorted(LINK_KEYS)), **PROFILES[name]}


def described(path: Path, name: str | None = None) -> dict[str, Any]:
    """What the topology file at `path` says, as plain values; its code runs here. Raises
    `UsageError` for a file that is none.
    """
    if not path.is_file():
        raise UsageError(
            f"topology '{path}' does not exist: give a .py file, e.g. topologies/two_host.py"
        )
    spec = importlib.util.spec_from_file_location("edgecompress_topology", path)
    if spec is None or spec.loader is None:
        raise UsageError(f"topology '{path}' is no Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        topos = getattr(module, "topos", None)
        if not isinstance(topos, dict) or not topos:
            raise UsageError(
                f"topology '{path}' has no topos: end it with topos = {{'name': YourTopo}}"
            )
        if name is not None and name not in topos:
            raise UsageError(f"topology '{path}' has no '{name}': it has {', '.join(topos)}")
        chosen = name or next(iter(topos))
        topo = topos[chosen]()
    except UsageError:
        raise
    except Exception as error:  # the user's code raises anything
        raise UsageError(
            f"topology '{path}': {type(error).__name__}: {' '.join(str(error).split())}"
        ) from error
    links = [[a, b, _own(params)] for a, b, params in topo.links(withInfo=True)]
    hosts, switches = (
        {node: _own(topo.nodeInfo(node)) for node in nodes}
        for nodes in (topo.hosts(), topo.switches())
    )
    return {"name": chosen, "hosts": hosts, "switches": switches, "links": links}


def _own(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters without those that Mininet adds."""
    return {
        key: value
        for key, value in params.items()
        if key not in ("node1", "node2", "port1", "port2", "isSwitch")
    }


def main() -> None:
    """`python -m edgecompress.emulate.topology FILE [NAME]`: the graph as JSON, or `{"error"}`."""
    try:
        answer = described(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None)
        text = json.dumps(answer)
    except UsageError as error:
        text = json.dumps({"error": str(error)})
    except TypeError as error:
        text = json.dumps(
            {
                "error": f"topology '{sys.argv[1]}' holds values that are no plain numbers and "
                f"texts: {error}"
            }
        )
    sys.stdout.write("\n" + text)


if __name__ == "__main__":
    main()
