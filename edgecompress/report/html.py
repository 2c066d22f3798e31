"""`report.html` of a run; everything in it comes from `result.json` and `history.csv`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from edgecompress.proportions import apart, shown, sure
from edgecompress.report.pages import write_page
from edgecompress.run.result import score_name
from edgecompress.run.schema import ControlRow, HistoryRow, RunResult, Side
from edgecompress.units import format_count, format_size

Row = tuple[str, str, str, str]
"""One row of a table: what it is about, and three values."""


def sides(result: RunResult) -> tuple[str, str]:
    """The headings of the two columns of the final table."""
    if "merge" in result:
        separate = result["merge"].get("heads") == "separate"
        return ("parents side by side" if separate else "best parent"), "merged"
    if "distill" in result and result["distill"]["teacher"]:
        return "teacher", "student"
    return "before", "after"


def comparison(result: RunResult) -> list[Row]:
    """Rows (what, before, after, ratio) of the final table."""
    before, after = result["teacher"], result["student"]
    old_ms, new_ms = before["latency_ms"]["p50"], after["latency_ms"]["p50"]
    return [
        _cost_row("file", before["bytes"], after["bytes"], format_size),
        _cost_row("parameters", before["params"], after["params"], format_count),
        _cost_row("MACs per sample", before["macs"], after["macs"], format_count),
        (
            f"test {score_name(result)}{_counted(before)}",
            _score(before),
            _score(after),
            _difference(result),
        ),
        (
            f"p50 latency, {after['threads']} thread(s)",
            f"{old_ms:.3g} ms",
            f"{new_ms:.3g} ms",
            _speed(result),
        ),
    ]


def _counted(side: Side) -> str:
    """`, n 359`: on how many samples a score was measured."""
    return f", n {side['n']}" if "n" in side else ""


def _score(side: Side | ControlRow) -> str:
    """`97.49% (95.2 to 98.7)`: the accuracy and its 95 % interval."""
    return sure(side["accuracy"], side.get("ci95"))


def _difference(result: RunResult) -> str:
    """`-0.56 points (-1.60 to +0.49)`: the second accuracy minus the first, on the same images."""
    difference = result["student"]["accuracy"] - result["teacher"]["accuracy"]
    known = result["accuracy_difference"]["ci95"] if "accuracy_difference" in result else None
    return apart(difference, known)


def _speed(result: RunResult) -> str:
    """`3.1x faster (3.0 to 3.2)`: the ratio of interleaved blocks, and its 95 % interval. No word
    for a difference that could be none.
    """
    before, after = result["teacher"], result["student"]
    ratio = after["latency_ms"]["p50"] / before["latency_ms"]["p50"]
    low = high = None
    if "latency_ratio" in result:
        ratio = result["latency_ratio"]["median"]
        low, high = result["latency_ratio"]["ci95"]
    word = "faster" if ratio <= 1 else "slower"
    factor = 1 / ratio if ratio <= 1 else ratio
    if low is None or high is None or low <= 0:
        return f"{factor:.3g}x {word} (too few processes for an interval)"
    if low <= 1 <= high:
        text = f"no clear difference ({low:.3g} to {high:.3g} of the time)"
    else:
        bounds = sorted((1 / low, 1 / high) if ratio <= 1 else (low, high))
        text = f"{factor:.3g}x {word} ({bounds[0]:.3g} to {bounds[1]:.3g})"
    return f"{text}, noisy" if result.get("load", {}).get("noisy") else text


def _cost_row(what: str, before: float, after: float, form: Callable[[float], str]) -> Row:
    return what, form(before), form(after), _ratio(before, after)


def _ratio(before: float, after: float) -> str:
    if after and before >= after:
        return f"{before / after:.3g}x less"
    return f"{after / before:.3g}x more" if before else "-"


def distillation(result: RunResult) -> list[Row]:
    """Rows (what, parameters, weights in fp32, accuracy) of a distillation: teacher, student, the
    control without teacher, and the published figures.
    """
    distill = result["distill"]
    tested = "student" in result
    split = "test" if tested else "validation"
    accuracy = (
        _score(result["student"])
        if tested
        else _on_validation(result, distill["validation_accuracy"])
    )
    rows = []
    if tested:
        teacher = result["teacher"]
        rows.append(_network_row("teacher", teacher["params"], _score(teacher)))
    student = f"{result['model']}, distilled ({split})"
    rows.append(_weights_row(student, distill["params"], distill["weights_bytes"], accuracy))
    if tested and result["student"]["params"] != distill["params"]:
        small = result["student"]["params"]
        rows.append(_network_row("the same, after lossless steps", small, accuracy))
    if "control" in result:
        control = result["control"]
        without = "teacher" if control["params"] == distill["params"] else "teacher and cuts"
        own = _score(control) if tested else _on_validation(result, control["validation_accuracy"])
        rows.append(_network_row(f"the same without {without} ({split})", control["params"], own))
    if "source" in distill:
        source = distill["source"]
        published = "García González (2022), CIFAR-10"
        rows.append(
            _weights_row(published, None, source["weights_bytes"], f"{source['accuracy']:.2%}")
        )
    return rows


def _on_validation(result: RunResult, accuracy: float) -> str:
    """A score on validation: an accuracy with its interval. A regression's R² has none."""
    counts = (row["n"] for row in result["stages"] if "n" in row and "ci95" in row)
    count = next(counts, None)
    return f"{accuracy:.2%}" if count is None else shown(accuracy, count)


def _network_row(what: str, params: int, accuracy: str) -> Row:
    return _weights_row(what, params, 4 * params, accuracy)


def _weights_row(what: str, params: int | None, weights_bytes: float, accuracy: str) -> Row:
    count = "-" if params is None else f"{params:,}"
    return what, count, f"{weights_bytes / 1024:,.0f} KiB", accuracy


def write_report(root: Path, result: RunResult, history: Sequence[HistoryRow]) -> None:
    """Write `report.html` into the run directory `root`."""
    from edgecompress.report import plots  # tables are shown without matplotlib

    score = score_name(result)
    compared = result.get("compare")
    profile = result.get("profile")
    kept = result.get("widths")
    write_page(
        root / "report.html",
        "report.html.j2",
        result=result,
        score=score,
        rows=comparison(result) if "teacher" in result else [],
        sides=sides(result),
        distillation=distillation(result) if "distill" in result else [],
        history_svg=plots.complexity(history, score) if history else "",
        control_svg=plots.control(history, score),
        compare_svg=plots.boxes(compared["results"], compared["score"]) if compared else "",
        curve_svg=plots.sparsity_curve(profile) if profile else "",
        bars_svg=plots.sparsity_bars(profile) if profile else "",
        widths_svg=plots.widths(kept) if kept else "",
    )
