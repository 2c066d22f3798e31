"""Accuracy against size: what the runs of a curve reached, as JSON and as a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from typing_extensions import NotRequired, TypedDict

from edgecompress.proportions import apart, sure
from edgecompress.report import plots
from edgecompress.report.pages import write_page as write_template
from edgecompress.run.result import read, score_name
from edgecompress.run.schema import RunResult
from edgecompress.units import format_count, format_size

HEADINGS = ("target", "bytes", "format", "parameters", "test", "against the teacher", "p50")


class Teacher(TypedDict):
    """The network that all points learned from; its score is that of its fp32 file."""

    score: float
    bytes: int
    params: int
    n: NotRequired[int]
    ci95: NotRequired[list[float]]


class Point(TypedDict):
    """A file of a curve; `difference` is its score minus the teacher's, paired, in 0..1."""

    target: str
    target_bytes: int
    folder: str
    file: str
    bytes: int
    format: str
    params: int
    macs: int
    score: float
    p50_ms: float
    wall_s: float
    missed: list[str]
    n: NotRequired[int]
    ci95: NotRequired[list[float]]
    difference: NotRequired[float]
    difference_ci95: NotRequired[list[float]]


class Curve(TypedDict):
    """The content of `curve.json`; scores are on the test split, called `score_name`, 0..1."""

    schema: int
    model: str
    data_label: str
    seed: int
    score_name: str
    teacher: Teacher
    points: list[Point]
    wall_s: float
    hardware: dict[str, object]
    versions: dict[str, str]


def collect(root: Path, names: Sequence[str], before: Sequence[str] = ()) -> Curve:
    """The curve of the complete runs `names` below `root`; those of `before` took time, too."""
    results = {name: read(root / name / "result.json") for name in (*before, *names)}
    first = results[names[0]]
    side = first["teacher"]
    teacher: Teacher = {
        "score": side["accuracy"],
        "bytes": side["bytes"],
        "params": side["params"],
    }
    if "ci95" in side:
        teacher["n"], teacher["ci95"] = side["n"], side["ci95"]
    return {
        "schema": 1,
        "model": first["model"],
        "data_label": first["data_label"],
        "seed": first["seed"],
        "score_name": score_name(first),
        "teacher": teacher,
        "points": [_point(name, results[name]) for name in names],
        "wall_s": round(sum(result["wall_s"] for result in results.values()), 3),
        "hardware": dict(first["hardware"]),
        "versions": first["versions"],
    }


def _point(name: str, result: RunResult) -> Point:
    student = result["student"]
    point: Point = {
        "target": name,
        "target_bytes": result["target_bytes"] or 0,
        "folder": name,
        "file": f"{name}/{result['artifact']}",
        "bytes": result["bytes"],
        "format": result["format"],
        "params": student["params"],
        "macs": student["macs"],
        "score": student["accuracy"],
        "p50_ms": student["latency_ms"]["p50"],
        "wall_s": result["wall_s"],
        "missed": result["missed"],
    }
    if "ci95" in student:
        point["n"], point["ci95"] = student["n"], student["ci95"]
    if "accuracy_difference" in result:
        point["difference"] = student["accuracy"] - result["teacher"]["accuracy"]
        point["difference_ci95"] = result["accuracy_difference"]["ci95"]
    return point


def rows(curve: Curve) -> list[tuple[str, ...]]:
    """A row of `HEADINGS` for each point."""
    return [
        (
            point["target"],
            f"{point['bytes']:,}",
            point["format"],
            format_count(point["params"]),
            sure(point["score"], point.get("ci95")),
            _against(point),
            f"{point['p50_ms']:.3g} ms",
        )
        for point in curve["points"]
    ]


def _against(point: Point) -> str:
    if "difference" not in point:
        return "-"
    return apart(point["difference"], point.get("difference_ci95"))


def write_page(path: Path, curve: Curve) -> None:
    """Write the report of a curve."""
    write_template(
        path,
        "curve.html.j2",
        curve=curve,
        headings=HEADINGS,
        rows=list(zip(curve["points"], rows(curve), strict=True)),
        plot=plots.curve(curve["points"], curve["teacher"], curve["score_name"]),
        teacher_size=format_size(curve["teacher"]["bytes"]),
    )
