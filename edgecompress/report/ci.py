"""A latency check in the formats of CI: JUnit XML, Markdown, github-action-benchmark's
`customSmallerIsBetter`, Bencher's BMF.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import final
from xml.etree import ElementTree

from typing_extensions import TypedDict

from edgecompress import files
from edgecompress.measure.regression import Comparison, Judged, Stored, StoredComparison
from edgecompress.measure.requests import BatchRow, FileRow, Gate, Profile
from edgecompress.units import format_size


class _Gated(TypedDict):
    gates: Sequence[Gate]
    """The gates beside latency."""


@final
class ComparisonResult(Comparison, _Gated):
    """Two files that were measured together, and the gates."""


@final
class StoredComparisonResult(StoredComparison, _Gated):
    """A file and a stored baseline, and the gates."""


@final
class SingleResult(Stored, _Gated):
    """A file that was measured alone, its profile, and the gates."""

    profile: Profile


BenchResult = ComparisonResult | StoredComparisonResult | SingleResult
"""The result of `edgecompress bench`."""


def checks(result: BenchResult, strict: bool) -> list[tuple[str, str, str]]:
    """(name, `pass`, `fail` or `skip`, one line) for every gate of a result: latency, and where
    requested, bytes and accuracy.
    """
    statuses = {
        "pass": "pass",
        "fail": "fail",
        "regression": "fail",
        "inconclusive": "fail" if strict else "skip",
    }
    rows = []
    if "ratio" in result:
        rows.append(("latency", statuses[result["verdict"]], sentence(result)))
    for gate in result.get("gates", []):
        verdict = gate.get("verdict", "pass" if gate["passed"] else "fail")
        rows.append((gate["name"], statuses[verdict], gate["text"]))
    return rows


def sentence(result: Judged) -> str:
    """The latency check in one line."""
    text = (
        f"{result['verdict']}: candidate {result['candidate']['p50_ms']:.4g} ms, baseline "
        f"{result['baseline']['p50_ms']:.4g} ms (p50), "
        f"ratio {result['ratio']['median']:.4f} ({interval_text(*result['ratio']['ci95'])}), "
        f"allowed {1 + result['max_regression']:.4f}; "
        f"{result['blocks']} blocks in {result['processes']} processes"
    )
    if result.get("normalised"):
        text += "; across machines, normalised by a reference workload"
    if result.get("remeasured"):
        text += "; the baseline was measured again, here and now"
    if result["time_over"]:
        text += "; the time ended: give more --time"
    if result.get("blocks_needed"):
        text += f"; about {result['blocks_needed']} blocks would settle it"
    return text


def interval_text(low: float | None, high: float | None) -> str:
    """The interval of a ratio: `95 % interval 0.98 to 1.04`."""
    if low is None or high is None:
        return "no interval from one process"
    return f"95 % interval {low:.4f} to {high:.4f}"


def printable(text: str) -> str:
    """`text` without the characters that XML 1.0 does not allow: they become U+FFFD."""
    return "".join(
        character
        if character in "\t\n\r" or (ord(character) >= 32 and not _is_surrogate(character))
        else "\ufffd"
        for character in text
    )


def _is_surrogate(character: str) -> bool:
    return 0xD800 <= ord(character) <= 0xDFFF or ord(character) in (0xFFFE, 0xFFFF)


def junit(result: BenchResult, strict: bool) -> bytes:
    """JUnit XML with one test case per gate; an inconclusive latency is skipped, under `strict` a
    failure.
    """
    rows = checks(result, strict)
    counts = {kind: sum(status == kind for _, status, _ in rows) for kind in ("fail", "skip")}
    suite = ElementTree.Element(
        "testsuite",
        name="edgecompress bench",
        tests=str(len(rows)),
        failures=str(counts["fail"]),
        errors="0",
        skipped=str(counts["skip"]),
    )
    for name, status, text in rows:
        title, text = printable(f"{name} of {result['candidate']['file']}"), printable(text)
        case = ElementTree.SubElement(suite, "testcase", classname="edgecompress.bench", name=title)
        if status == "fail":
            ElementTree.SubElement(case, "failure", message=text)
        elif status == "skip":
            ElementTree.SubElement(case, "skipped", message=text)
    root = ElementTree.Element("testsuites")
    root.append(suite)
    body: str = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{body}\n'.encode()


def markdown(result: BenchResult, strict: bool) -> str:
    """A section for the summary of a job: the gates, then both files."""
    marks = {"pass": "pass", "fail": "**fail**", "skip": "inconclusive"}
    lines = ["## edgecompress bench", "", "| check | result | |", "|---|---|---|"]
    lines += [
        f"| {name} | {marks[status]} | {text} |" for name, status, text in checks(result, strict)
    ]
    lines += ["", "| | file | bytes | p50 ms | p90 ms | p99 ms |", "|---|---|---|---|---|---|"]
    rows = sides(result)
    names = files.distinct_names([Path(row["file"]) for row in rows.values()])
    for (side, row), short in zip(rows.items(), names, strict=True):
        name = short.replace("|", "&#124;")
        numbers = " | ".join(f"{value:.4g}" for value in percentiles_ms(row))
        lines.append(f"| {side} | {name} | {format_size(row['bytes'])} | {numbers} |")
    machine = result["hardware"]
    lines += ["", f"{machine['cpu']}, {result['threads']} thread(s), batch {result['batch']}.", ""]
    return "\n".join(lines)


def sides(result: BenchResult) -> dict[str, FileRow]:
    """The files of a result: the candidate, and the baseline where there is one."""
    rows = {"candidate": result["candidate"]}
    return {**rows, "baseline": result["baseline"]} if "ratio" in result else rows


def percentiles_ms(row: FileRow | BatchRow) -> tuple[float, float, float]:
    """p50, p90 and p99 in milliseconds."""
    return row["p50_ms"], row["p90_ms"], row["p99_ms"]


def smaller_is_better(result: BenchResult) -> list[dict[str, object]]:
    """The entries of github-action-benchmark's tool `customSmallerIsBetter`."""
    row = result["candidate"]
    name = Path(row["file"]).name
    spread = f"p90 {row['p90_ms']:.4g} ms"
    return [
        {"name": f"{name} p50 latency", "unit": "ms", "value": row["p50_ms"], "range": spread},
        {"name": f"{name} size", "unit": "bytes", "value": row["bytes"]},
    ]


def bencher(result: BenchResult) -> dict[str, dict[str, dict[str, float]]]:
    """Bencher Metric Format: {benchmark: {measure: {value, ...}}}; latency in nanoseconds, the unit
    of that measure.
    """
    row = result["candidate"]
    p50, p90 = row["p50_ms"] * 1e6, row["p90_ms"] * 1e6
    return {
        Path(row["file"]).name: {
            "latency": {"value": p50, "upper_value": p90},
            "file-size": {"value": row["bytes"]},
        }
    }


def write(
    result: BenchResult,
    strict: bool,
    targets: Mapping[str, Path | None],
    appended: Sequence[Path] = (),
) -> None:
    """Write the formats that have a path in `targets` (junit, summary, github_action_benchmark,
    bencher); append Markdown to the files in `appended`.
    """
    contents: dict[str, Callable[[], bytes]] = {
        "junit": lambda: junit(result, strict),
        "summary": lambda: markdown(result, strict).encode(),
        "github_action_benchmark": lambda: _json(smaller_is_better(result)),
        "bencher": lambda: _json(bencher(result)),
    }
    for name, path in targets.items():
        if path is not None:
            files.write_bytes(path, contents[name]())
    for path in appended:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as stream:
            stream.write(markdown(result, strict))


def _json(value: object) -> bytes:
    return json.dumps(value, indent=2).encode()
