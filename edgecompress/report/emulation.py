"""`report.html` of an emulation: one file, no scripts, nothing fetched; everything in it comes from
`result.json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from jinja2 import Environment, PackageLoader, select_autoescape

from edgecompress import files
from edgecompress.report.plots import BLUE, GREEN, GREY, ORANGE, _svg
from edgecompress.units import format_count, format_duration, format_size


def write_report(root: Path, result: Mapping[str, Any]) -> None:
    """Write `report.html` into the run directory `root`."""
    environment = Environment(
        loader=PackageLoader("edgecompress.report"), autoescape=select_autoescape(["html", "j2"])
    )
    environment.filters.update(size=format_size, count=format_count, duration=format_duration)
    text = environment.get_template("emulate.html.j2").render(
        result=result,
        number=lambda value: "–" if value is None else f"{value:.4g}",
        topology_svg=topology(result),
        traffic_svg=traffic(result),
        lesson_svg=lesson(result),
    )
    files.write_bytes(root / "report.html", text.encode())


def _places(graph: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Where to draw each node: by its distance from the first teacher, spread within that
    distance.
    """
    neighbours: dict[str, list[str]] = {}
    for link in graph["links"]:
        neighbours.setdefault(link["a"], []).append(link["b"])
        neighbours.setdefault(link["b"], []).append(link["a"])
    first = next(host["name"] for host in graph["hosts"] if host["role"] == "teacher")
    levels, waiting = {first: 0}, [first]
    while waiting:
        node = waiting.pop(0)
        for other in neighbours[node]:
            if other not in levels:
                levels[other] = levels[node] + 1
                waiting.append(other)
    places = {}
    for level in set(levels.values()):
        row = [name for name, at in levels.items() if at == level]
        places.update({name: (float(level), (len(row) - 1) / 2 - n) for n, name in enumerate(row)})
    return places


def topology(result: Mapping[str, Any]) -> str:
    """Hosts and switches with what was asked of each link."""
    graph, places = result["graph"], _places(result["graph"])
    tall = 1 + max(abs(y) for _, y in places.values())
    figure, axis = plt.subplots(figsize=(8, 1.2 + 0.9 * tall))
    for link in result["links"]:
        (x0, y0), (x1, y1) = places[link["a"]], places[link["b"]]
        axis.plot([x0, x1], [y0, y1], color=GREY, linewidth=1.5, zorder=1)
        asked = link["configured"]
        parts = [
            f"{asked['bw_mbps']:g} Mbit/s" if asked["bw_mbps"] else "",
            f"{asked['delay_ms']:g} ms" if asked["delay_ms"] else "",
            f"{asked['loss_pct']:g} % lost" if asked["loss_pct"] else "",
        ]
        axis.annotate(
            ", ".join(part for part in parts if part),
            ((x0 + x1) / 2, (y0 + y1) / 2 + 0.08),
            ha="center",
            fontsize=8,
        )
    roles = {host["name"]: host["role"] for host in graph["hosts"]}
    for name, (x, y) in places.items():
        colour = {"teacher": ORANGE, "student": BLUE}.get(roles.get(name, ""), GREY)
        axis.scatter(
            [x],
            [y],
            s=900 if name in roles else 400,
            color=colour,
            marker="o" if name in roles else "s",
            zorder=2,
        )
        axis.annotate(name, (x, y - 0.3), ha="center", va="top", fontsize=9)
    axis.set_xlim(-0.5, max(x for x, _ in places.values()) + 0.5)
    axis.set_ylim(-tall, tall)
    axis.axis("off")
    return _svg(figure)


def traffic(result: Mapping[str, Any]) -> str:
    """Throughput over time, up and down, and the distribution of round trips."""
    rows, trips = result["traffic"]["timeline"], result["traffic"]["rtt_samples_ms"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 2.8))
    for way, colour in (("down", BLUE), ("up", ORANGE)):
        left.plot(
            [row["time_s"] for row in rows],
            [8 * row[way] / 0.5 / 1e6 for row in rows],
            color=colour,
            label=f"{way} (students' side)",
        )
    left.set(title="throughput, Mbit/s", xlabel="seconds")
    left.set_ylim(bottom=0)
    left.legend(frameon=False)
    if trips:
        right.hist(trips, bins=40, color=GREEN)
    right.set(title="round trips of segments, ms", xlabel="ms")
    return _svg(figure)


def lesson(result: Mapping[str, Any]) -> str:
    """The students' accuracy on validation against time and against bytes, and what a step is made
    of.
    """
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10, 2.8))
    students = result["distill"]["students"]
    for name, row in students.items():
        line = row["timeline"]
        left.plot(
            [r["time_s"] for r in line],
            [100 * r["validation_accuracy"] for r in line],
            "o-",
            markersize=3,
            label=name,
        )
        middle.plot(
            [r["wire_bytes"] / 1e6 for r in line],
            [100 * r["validation_accuracy"] for r in line],
            "o-",
            markersize=3,
        )
    left.set(title="validation accuracy, %", xlabel="seconds")
    middle.set(title="validation accuracy, %", xlabel="MB sent and received")
    left.legend(frameon=False, fontsize=8)
    names = list(students)
    compute = [students[name]["compute_ms"]["p50"] for name in names]
    wait = [students[name]["wait_ms"]["p50"] for name in names]
    right.bar(names, compute, color=BLUE, label="compute")
    right.bar(names, wait, bottom=compute, color=ORANGE, label="wait")
    right.set(title="a step, ms (p50)")
    right.legend(frameon=False, fontsize=8)
    return _svg(figure)
