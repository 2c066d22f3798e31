"""`report.html`: one file, no scripts, nothing fetched; everything in it comes from `result.json`
and `history.csv`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape

from edgecompress import files
from edgecompress.report import plots
from edgecompress.run.result import score_name
from edgecompress.units import format_count, format_duration, format_size


def sides(result: Mapping[str, Any]) -> tuple[str, str]:
    """What the two columns of the final table are called."""
    if "merge" in result:
        return "parents side by side" if result["merge"].get(
            "heads"
        ) == "separate" else "best parent", "merged"
    return (
        ("teacher", "student")
        if (result.get("distill") or {}).get("teacher")
        else ("before", "after")
    )


def comparison(result: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Rows (what, before, after, ratio) of the final table."""
    before, after = result["teacher"], result["student"]

    def ratio(old: float, new: float) -> str:
        return (
            f"{old / new:.3g}x less"
            if new and old >= new
            else f"{new / old:.3g}x more"
            if old
            else "-"
        )

    rows = [
        (
            "file",
            format_size(before["bytes"]),
            format_size(after["bytes"]),
            ratio(before["bytes"], after["bytes"]),
        ),
        (
            "parameters",
            format_count(before["params"]),
            format_count(after["params"]),
            ratio(before["params"], after["params"]),
        ),
        (
            "MACs a sample",
            format_count(before["macs"]),
            format_count(after["macs"]),
            ratio(before["macs"], after["macs"]),
        ),
    ]
    points = 100 * (after["accuracy"] - before["accuracy"])
    rows.append(
        (
            f"test {score_name(result)}",
            f"{before['accuracy']:.2%}",
            f"{after['accuracy']:.2%}",
            f"{points:+.2f} points",
        )
    )
    old, new = before["latency_ms"]["p50"], after["latency_ms"]["p50"]
    faster = f"{old / new:.3g}x faster" if old >= new else f"{new / old:.3g}x slower"
    rows.append(
        (f"p50 latency, {after['threads']} thread(s)", f"{old:.3g} ms", f"{new:.3g} ms", faster)
    )
    return rows


def distillation(result: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Rows (what, parameters, weights in fp32, accuracy) of a distillation: teacher, student, the
    same without teacher, the source's.
    """
    told, tested = result["distill"], "student" in result
    on = "test" if tested else "validation"

    def row(
        what: str, params: int | None, weights: float, accuracy: float
    ) -> tuple[str, str, str, str]:
        return (
            what,
            "-" if params is None else f"{params:,}",
            f"{weights / 1024:,.0f} KiB",
            f"{accuracy:.2%}",
        )

    rows = []
    if tested:
        teacher = result["teacher"]
        rows.append(row("teacher", teacher["params"], 4 * teacher["params"], teacher["accuracy"]))
    accuracy = result["student"]["accuracy"] if tested else told["validation_accuracy"]
    rows.append(
        row(f"{result['model']}, distilled ({on})", told["params"], told["weights_bytes"], accuracy)
    )
    if tested and result["student"]["params"] != told["params"]:
        small = result["student"]["params"]
        rows.append(row("the same, lossless steps done", small, 4 * small, accuracy))
    if "control" in result:
        control = result["control"]["accuracy" if tested else "validation_accuracy"]
        size = result["control"]["params"]
        without = "teacher" if size == told["params"] else "teacher and cuts"
        rows.append(row(f"the same without {without} ({on})", size, 4 * size, control))
    if "source" in told:
        source = told["source"]
        rows.append(
            row(
                "García González (2022), CIFAR-10",
                None,
                source["weights_bytes"],
                source["accuracy"],
            )
        )
    return rows


def write_report(
    root: Path, result: Mapping[str, Any], history: Sequence[Mapping[str, Any]]
) -> None:
    """Write `report.html` into the run directory `root`."""
    environment = Environment(
        loader=PackageLoader("edgecompress.report"), autoescape=select_autoescape(["html", "j2"])
    )
    environment.filters.update(size=format_size, count=format_count, duration=format_duration)
    text = environment.get_template("report.html.j2").render(
        result=result,
        score=score_name(result),
        rows=comparison(result) if "teacher" in result else [],
        sides=sides(result),
        history_svg=plots.complexity(history, score_name(result)) if history else "",
        control_svg=plots.control(history, score_name(result)),
        compare_svg=plots.boxes(result["compare"]["results"], result["compare"]["score"])
        if "compare" in result
        else "",
        distillation=distillation(result) if "distill" in result else [],
        curve_svg=plots.sparsity_curve(result["profile"]) if "profile" in result else "",
        bars_svg=plots.sparsity_bars(result["profile"]) if "profile" in result else "",
        widths_svg=plots.widths(result["widths"]) if result.get("widths") else "",
    )
    files.write_bytes(root / "report.html", text.encode())
