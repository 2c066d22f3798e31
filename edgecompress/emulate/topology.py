"""A topology as a plain graph, checked before anything is built: hosts with roles, switches, and
links with their properties.

Hosts: `role` (teacher or student; none for others), `model`, `cpu` (share of one core). Links: `bw`
(Mbit/s), `delay` and `jitter` (one way, with unit: 10ms), `loss` (%).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict, TypeGuard

from edgecompress.emulate.schema import Configured, GraphLink, GraphRow, HostRow
from edgecompress.errors import UnknownChoiceError, UnknownNameError, UsageError, nearest
from edgecompress.units import parse_duration

ROLES = ("teacher", "student")
HOST_KEYS = {"role", "model", "cpu"}
SWITCH_KEYS = frozenset({"dpid"})
LINK_KEYS = {"bw", "delay", "jitter", "loss"}
PROFILES: dict[str, dict[str, float | str]] = {
    "ethernet": {"bw": 100, "delay": "1ms"},
    "wifi": {"bw": 30, "delay": "3ms", "jitter": "2ms", "loss": 0.5},
    "lte": {"bw": 12, "delay": "25ms", "jitter": "5ms", "loss": 0.1},
    "3g": {"bw": 2, "delay": "75ms", "jitter": "10ms", "loss": 0.5},
    "satellite": {"bw": 10, "delay": "300ms"},
}
"""Named links, for `--link`: typical values, not measured ones."""
BANDWIDTH = (0.1, 10_000.0)
"""Mbit/s that a link may have."""
CPU = (0.01, 1024.0)
"""Cores that a host may have."""
MOST_LOSS_PCT = 50
MOST_MS = 10_000
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,30}")
AUTHORITY = "ca"
"""The name of the run's certificate authority."""

Params = Mapping[str, object]
"""The properties of a node or a link, as the topology file gives them."""


class Description(TypedDict):
    """A topology file as plain values, not checked; a link is (a, b, properties)."""

    name: str
    hosts: Mapping[str, Params]
    switches: Mapping[str, Params]
    links: Sequence[tuple[str, str, Params]]


@dataclass(frozen=True)
class Host:
    """A host; `role` is teacher, student or empty, `cpu` a share of one core or None."""

    name: str
    role: str = ""
    model: str | None = None
    cpu: float | None = None

    def row(self) -> HostRow:
        """As JSON values."""
        return {"name": self.name, "role": self.role, "model": self.model, "cpu": self.cpu}


@dataclass(frozen=True)
class Link:
    """A link between two nodes. None: no limit, delay, jitter or loss."""

    a: str
    b: str
    bw_mbps: float | None = None
    delay_ms: float | None = None
    jitter_ms: float | None = None
    loss_pct: float | None = None

    @property
    def filtered(self) -> bool:
        """True if it has delay, jitter or loss, so that limiting its bandwidth is not enough."""
        return any((self.delay_ms, self.jitter_ms, self.loss_pct))

    def configured(self) -> Configured:
        """Its requested properties."""
        return {
            "bw_mbps": self.bw_mbps,
            "delay_ms": self.delay_ms,
            "jitter_ms": self.jitter_ms,
            "loss_pct": self.loss_pct,
        }

    def row(self) -> GraphLink:
        """As JSON values."""
        return {"a": self.a, "b": self.b, **self.configured()}


@dataclass(frozen=True)
class Graph:
    """A topology: hosts, switches, and the links between them, which form a tree."""

    name: str
    hosts: tuple[Host, ...]
    switches: tuple[str, ...]
    links: tuple[Link, ...]

    def of_role(self, role: str) -> list[Host]:
        """The hosts with a role."""
        return [host for host in self.hosts if host.role == role]

    def as_dict(self) -> GraphRow:
        """As JSON values."""
        return {
            "name": self.name,
            "hosts": [host.row() for host in self.hosts],
            "switches": list(self.switches),
            "links": [link.row() for link in self.links],
        }


def graph_from(values: Description, link: Params | None = None) -> Graph:
    """The checked graph of a description.

    `link` are properties that override those of every link. Raises `UsageError` naming the first
    mistake.
    """
    hosts = tuple(_host(name, params) for name, params in values["hosts"].items())
    switches = tuple(_switch(name, params) for name, params in values["switches"].items())
    names = [*(host.name for host in hosts), *switches]
    _check_names(names)
    links = tuple(
        _link(str(a), str(b), {**params, **(link or {})}, names) for a, b, params in values["links"]
    )
    graph = Graph(str(values["name"]), hosts, switches, links)
    _check_roles(graph)
    _check_tree(graph)
    return graph


def _check_names(names: Sequence[str]) -> None:
    for name in names:
        if not NAME.fullmatch(name) or names.count(name) > 1:
            raise UsageError(
                f"node '{name}': a name has letters, digits, - and _, begins with a letter, "
                "and is unique"
            )


def _check_roles(graph: Graph) -> None:
    for role in ROLES:
        if not graph.of_role(role):
            raise UsageError(f"topology '{graph.name}' has no {role}: give a host role='{role}'")
    if len(graph.of_role("teacher")) > len(graph.of_role("student")):
        raise UsageError(
            f"topology '{graph.name}' has a teacher without a student: give at least as many "
            "students as teachers"
        )


def _switch(name: str, params: Params) -> str:
    unknown = set(params) - SWITCH_KEYS
    if unknown:
        raise UsageError(
            f"switch '{name}': unknown key '{min(unknown)}': allowed is "
            f"{', '.join(SWITCH_KEYS)}, which mn needs"
        )
    return str(name)


def _unknown_key(where: str, key: str, known: Iterable[str]) -> str:
    allowed = sorted(known)
    return f"{where}: unknown key '{key}': allowed are {', '.join(allowed)}{nearest(key, allowed)}"


def _host(name: str, params: Params) -> Host:
    unknown = set(params) - HOST_KEYS
    if unknown:
        raise UsageError(_unknown_key(f"host '{name}'", min(unknown), HOST_KEYS))
    role = str(params.get("role") or "")
    if role and role not in ROLES:
        raise UnknownChoiceError(f"host '{name}': role", role, ROLES)
    cpu = params.get("cpu")
    if cpu is not None and not _within(cpu, *CPU):
        raise UsageError(
            f"host '{name}': cpu {cpu!r} is not a share of a core: give a number from "
            f"{CPU[0]:g} on, e.g. 0.5"
        )
    if name == AUTHORITY:
        raise UsageError(
            f"host '{AUTHORITY}': this is the name of the run's certificate authority: give "
            "another name"
        )
    model = params.get("model")
    return Host(
        name, role, None if model is None else str(model), None if cpu is None else float(cpu)
    )


def _within(value: object, low: float, high: float) -> TypeGuard[float]:
    """True for a number in low..high."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return low <= value <= high


def _link(a: str, b: str, params: Params, names: Sequence[str]) -> Link:
    where = f"link {a} - {b}"
    for end in (a, b):
        if end not in names:
            raise UsageError(f"{where}: no node '{end}'")
    unknown = set(params) - LINK_KEYS
    if unknown:
        raise UsageError(_unknown_key(where, min(unknown), LINK_KEYS))
    bandwidth = _bandwidth(where, params.get("bw"))
    loss = _loss(where, params.get("loss"))
    delay = _milliseconds(where, "delay", params.get("delay"))
    jitter = _milliseconds(where, "jitter", params.get("jitter"))
    if jitter and (delay is None or jitter > delay):
        raise UsageError(
            f"{where}: jitter {params['jitter']} is more than the delay it varies: give a "
            "delay at least as long"
        )
    return Link(a, b, bandwidth, delay, jitter, loss)


def _bandwidth(where: str, value: object) -> float | None:
    if value is None:
        return None
    low, high = BANDWIDTH
    if not _within(value, low, high):
        raise UsageError(
            f"{where}: bw {value!r} is outside {low:g}..{high:g} Mbit/s: give a number of Mbit/s"
        )
    return float(value)


def _loss(where: str, value: object) -> float | None:
    if value is None:
        return None
    if not _within(value, 0, MOST_LOSS_PCT):
        raise UsageError(
            f"{where}: loss {value!r} is outside 0..{MOST_LOSS_PCT} %: give a number of percent"
        )
    return float(value) or None


def _milliseconds(where: str, key: str, value: object) -> float | None:
    if value is not None and not isinstance(value, str):
        raise UsageError(f"{where}: {key} {value!r} has no unit: write it like '10ms'")
    if value in (None, "0ms", "0s"):
        return None
    duration_ms = 1e3 * parse_duration(str(value))
    if duration_ms > MOST_MS:
        raise UsageError(f"{where}: {key} {value!r} is above {MOST_MS / 1e3:g}s")
    return duration_ms


def _check_tree(graph: Graph) -> None:
    """Every node is reached, by one path only: the bridges run no spanning tree protocol."""
    neighbours = _neighbours(graph)
    for host in graph.hosts:
        count = len(neighbours[host.name])
        if count != 1:
            raise UsageError(
                f"host '{host.name}' has {count} links: a host has one; put a switch between"
            )
    first = graph.hosts[0].name
    unreached = set(neighbours) - _reached(neighbours, first)
    if unreached:
        raise UsageError(f"node '{min(unreached)}' is not reached from '{first}': add a link")
    if len(graph.links) != len(neighbours) - 1:
        raise UsageError(
            f"topology '{graph.name}' has a loop: {len(graph.links)} links join "
            f"{len(neighbours)} nodes"
        )


def _neighbours(graph: Graph) -> dict[str, list[str]]:
    nodes = (*(host.name for host in graph.hosts), *graph.switches)
    neighbours: dict[str, list[str]] = {name: [] for name in nodes}
    for link in graph.links:
        if link.a == link.b:
            raise UsageError(f"link {link.a} - {link.b} joins a node to itself")
        neighbours[link.a].append(link.b)
        neighbours[link.b].append(link.a)
    return neighbours


def _reached(neighbours: Mapping[str, Sequence[str]], first: str) -> set[str]:
    """The nodes with a path to `first`."""
    reached = set[str]()
    pending = [first]
    while pending:
        node = pending.pop()
        if node not in reached:
            reached.add(node)
            pending += neighbours[node]
    return reached


def profile(name: str) -> dict[str, float | str | None]:
    """All properties of a named link, None where it has none. Raises `UnknownNameError` for an
    unknown name.
    """
    if name not in PROFILES:
        raise UnknownNameError("link", name, PROFILES)
    return {**dict.fromkeys(sorted(LINK_KEYS)), **PROFILES[name]}
