"""The results of emulations as text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgecompress.cli.console import print_line, stdout, table
from edgecompress.proportions import sure

if TYPE_CHECKING:
    from edgecompress.emulate.schema import (
        Configured,
        EmulationResult,
        LinkRow,
        Measurement,
        RoleResult,
    )


def show_sweep(results: Sequence[tuple[str, EmulationResult]], root: Path) -> None:
    """A row for each run of a sweep."""
    rows = []
    for name, result in results:
        lesson, traffic = result["distill"], result["traffic"]
        best = max(lesson["students"].values(), key=lambda row: row["accuracy"])
        rows.append(
            (
                name,
                sure(best["accuracy"], best.get("ci95")),
                f"{lesson['step_ms']['p50']:.1f}",
                f"{lesson['wait_ms']['p50']:.1f}",
                f"{lesson['bytes_per_sample']:.2f}",
                f"{traffic['captured_bytes']}",
                str(traffic["retransmissions"]),
                f"{result['wall_s']:.1f}",
                "yes" if result["valid"] else "no",
            )
        )
    columns = [
        "run",
        "best student",
        "step, ms",
        "waiting",
        "bytes per sample",
        "bytes on the wire",
        "sent again",
        "seconds",
        "valid",
    ]
    stdout().print(table("sweep", columns, rows))
    print_line(f"results: {root}/*/result.json")


def show(result: EmulationResult, root: Path) -> None:
    """Links, traffic, what the lesson took, accuracies, and what makes the run invalid."""
    show_links(result["links"])
    show_traffic(result)
    lesson = result["distill"]
    for name, row in {**lesson["teachers"], **lesson["students"]}.items():
        show_role(name, row)
    for reason in result["reasons"]:
        print_line(f"invalid: {reason}")
    for line in result.get("regressions", []):
        print_line(f"regression: {line}")
    print_line(f"result: {root / 'result.json'}")
    print_line(f"report: {root / 'report.html'}")


def show_links(links: Sequence[LinkRow]) -> None:
    """A row for each link: what was requested and what was measured."""
    rows = [
        (f"{link['a']} - {link['b']}", link["backend"], *_pairs(link["configured"], measured))
        for link in links
        if (measured := link["measured"]) is not None
    ]
    columns = ["link", "by", "Mbit/s", "delay each way / round trip, ms", "loss, %"]
    stdout().print(table("links: requested / measured", columns, rows))


def _pairs(configured: Configured, measured: Measurement) -> tuple[str, str, str]:
    """Bandwidth, delay and loss: requested / measured."""
    return (
        _pair(configured["bw_mbps"], measured["bw_mbps"]),
        _pair(configured["delay_ms"], measured["rtt_ms"]),
        _pair(configured["loss_pct"], measured["loss_pct"]),
    )


def show_traffic(result: EmulationResult) -> None:
    """What was captured, and the steps of the lesson."""
    traffic, lesson = result["traffic"], result["distill"]
    captured = f"captured {traffic['packets']} frames, {traffic['captured_bytes']} bytes"
    counted = f"the kernel counted {traffic['counter_bytes']}, dropped {traffic['kernel_dropped']}"
    print_line(f"{captured} ({counted}); {traffic['goodput_mbps']:.3g} Mbit/s of payload")
    print_line(f"{traffic['retransmissions']} retransmissions, {len(result['faults'])} faults")
    samples = f"{lesson['samples']} samples in {lesson['steps']} steps"
    way = result["codec"] or result["exchange"]
    took = f"a step {lesson['step_ms']['p50']:.1f} ms (p50)"
    waiting = f"of it waiting {lesson['wait_ms']['p50']:.1f}"
    per_sample = f"{lesson['bytes_per_sample']:.2f} bytes per sample ({way})"
    print_line(f"{samples}, {per_sample}; {took}, {waiting}")


def show_role(name: str, row: RoleResult) -> None:
    """The accuracy of a teacher or student, and what pruning left of it."""
    cut = ""
    if "params_before" in row:
        cut = f", {row['params']} of {row['params_before']} parameters left"
    known = sure(row["accuracy"], row.get("ci95"))
    samples = f", n {row['n']}" if "n" in row else ""
    print_line(f"{name}: {known} on test ({row['model']}{cut}{samples})")
    if "floors_reached" in row:
        print_line(f"{name}: {row['floors_reached']}")


def _pair(requested: float | None, measured: float | None) -> str:
    left = "-" if requested is None else f"{requested:g}"
    right = "-" if measured is None else f"{measured:.4g}"
    return f"{left} / {right}"
