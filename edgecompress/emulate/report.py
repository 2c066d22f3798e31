"""`report.html` of an emulation; everything in it comes from `result.json`."""

from __future__ import annotations

from collections import deque
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from edgecompress.emulate.schema import Configured, EmulationResult, GraphRow
from edgecompress.report.pages import write_page
from edgecompress.report.plots import BLUE, GREEN, GREY, ORANGE, STYLE, svg

BIN_S = 0.5
"""Width of a bin of the timeline, in seconds."""


def write_report(root: Path, result: EmulationResult) -> None:
    """Write `report.html` into the run directory `root`."""
    write_page(
        root / "report.html",
        "emulate.html.j2",
        result=result,
        number=_number,
        topology_svg=topology(result),
        traffic_svg=traffic(result),
        lesson_svg=lesson(result),
    )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _places(graph: GraphRow) -> dict[str, tuple[float, float]]:
    """Where to draw each node: by its distance from the first teacher, spread within that
    distance.
    """
    first = next(host["name"] for host in graph["hosts"] if host["role"] == "teacher")
    levels = _levels(graph, first)
    places = {}
    for level in set(levels.values()):
        row = [name for name, own in levels.items() if own == level]
        places.update({name: (float(level), (len(row) - 1) / 2 - n) for n, name in enumerate(row)})
    return places


def _levels(graph: GraphRow, first: str) -> dict[str, int]:
    """The number of links from `first` to each node."""
    neighbours: dict[str, list[str]] = {}
    for link in graph["links"]:
        neighbours.setdefault(link["a"], []).append(link["b"])
        neighbours.setdefault(link["b"], []).append(link["a"])
    levels = {first: 0}
    pending = deque([first])
    while pending:
        node = pending.popleft()
        for neighbour in neighbours[node]:
            if neighbour not in levels:
                levels[neighbour] = levels[node] + 1
                pending.append(neighbour)
    return levels


@rc_context(STYLE)
def topology(result: EmulationResult) -> str:
    """Hosts and switches, with the requested properties of each link."""
    graph = result["graph"]
    places = _places(graph)
    tall = 1 + max(abs(y) for _, y in places.values())
    figure = Figure(figsize=(8, 1.2 + 0.9 * tall))
    axis = figure.subplots()
    for link in result["links"]:
        _draw_link(axis, places[link["a"]], places[link["b"]], link["configured"])
    roles = {host["name"]: host["role"] for host in graph["hosts"]}
    for name, place in places.items():
        _draw_node(axis, place, name, roles.get(name))
    axis.set_xlim(-0.5, max(x for x, _ in places.values()) + 0.5)
    axis.set_ylim(-tall, tall)
    axis.axis("off")
    return svg(figure)


def _draw_link(
    axis: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    configured: Configured,
) -> None:
    x0, y0 = start
    x1, y1 = end
    axis.plot([x0, x1], [y0, y1], color=GREY, linewidth=1.5, zorder=1)
    known = (
        (configured["bw_mbps"], "Mbit/s"),
        (configured["delay_ms"], "ms"),
        (configured["loss_pct"], "% lost"),
    )
    parts = [f"{value:g} {unit}" for value, unit in known if value]
    middle = ((x0 + x1) / 2, (y0 + y1) / 2 + 0.08)
    axis.annotate(", ".join(parts), middle, ha="center", fontsize=8)


def _draw_node(axis: Axes, place: tuple[float, float], name: str, role: str | None) -> None:
    """A node; `role` is None for a switch."""
    is_host = role is not None
    x, y = place
    axis.scatter(
        [x],
        [y],
        s=900 if is_host else 400,
        color={"teacher": ORANGE, "student": BLUE}.get(role or "", GREY),
        marker="o" if is_host else "s",
        zorder=2,
    )
    axis.annotate(name, (x, y - 0.3), ha="center", va="top", fontsize=9)


@rc_context(STYLE)
def traffic(result: EmulationResult) -> str:
    """Throughput over time in both directions, and the distribution of round trips."""
    rows = result["traffic"]["timeline"]
    round_trips = result["traffic"]["rtt_samples_ms"]
    figure = Figure(figsize=(10, 2.8))
    throughput, distribution = figure.subplots(1, 2)
    times = [row["time_s"] for row in rows]
    ways = (
        ("down", [row["down"] for row in rows], BLUE),
        ("up", [row["up"] for row in rows], ORANGE),
    )
    for way, sizes, colour in ways:
        rates = [8 * size / BIN_S / 1e6 for size in sizes]
        throughput.plot(times, rates, color=colour, label=f"{way} (students' side)")
    throughput.set(title="throughput, Mbit/s", xlabel="seconds")
    throughput.set_ylim(bottom=0)
    throughput.legend(frameon=False)
    if round_trips:
        distribution.hist(round_trips, bins=40, color=GREEN)
    distribution.set(title="round trips of segments, ms", xlabel="ms")
    return svg(figure)


@rc_context(STYLE)
def lesson(result: EmulationResult) -> str:
    """The students' accuracy on validation over time and over bytes, and the parts of a step."""
    students = result["distill"]["students"]
    figure = Figure(figsize=(10, 2.8))
    over_time, over_bytes, parts = figure.subplots(1, 3)
    for name, student in students.items():
        rows = student["timeline"]
        accuracy = [100 * row["validation_accuracy"] for row in rows]
        times = [row["time_s"] for row in rows]
        megabytes = [row["wire_bytes"] / 1e6 for row in rows]
        over_time.plot(times, accuracy, "o-", markersize=3, label=name)
        over_bytes.plot(megabytes, accuracy, "o-", markersize=3)
    over_time.set(title="validation accuracy, %", xlabel="seconds")
    over_bytes.set(title="validation accuracy, %", xlabel="MB sent and received")
    over_time.legend(frameon=False, fontsize=8)
    names = list(students)
    compute = [students[name]["compute_ms"]["p50"] for name in names]
    wait = [students[name]["wait_ms"]["p50"] for name in names]
    parts.bar(names, compute, color=BLUE, label="compute")
    parts.bar(names, wait, bottom=compute, color=ORANGE, label="wait")
    parts.set(title="time per step, ms (p50)")
    parts.legend(frameon=False, fontsize=8)
    return svg(figure)
