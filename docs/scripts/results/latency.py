"""Tables of the latency check and of int8 files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from docs.scripts.markdown import table
from docs.scripts.results.files import percent, read

NETWORKS = {"vgg16_bn": "VGG16-BN", "resnet20": "ResNet-20", "vgg16": "VGG16"}


def check() -> str:
    """Comparisons of a file with itself, and slow-downs that are real."""
    result = read("gate")
    same = result["same"]
    rows = [
        _judged(f"a file against itself, {condition}", same["max_regression"], case)
        for condition, case in same["summary"].items()
    ]
    rows += [
        _judged(f"slower by {name}", case["max_regression"], case)
        for name, case in result["injected"]["cases"].items()
    ]
    rows += [
        _judged(f"a network of {name}", case["max_regression"], case)
        for name, case in result["slow"]["cases"].items()
    ]
    columns = [
        "case",
        "tolerance",
        "comparisons",
        "regression",
        "inconclusive",
        "pass",
        "ratio, smallest to largest",
        "time, median and longest",
    ]
    return table(columns, rows)


def _judged(name: str, tolerance: float, case: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        name,
        percent(tolerance, 0),
        *(str(case[key]) for key in ("comparisons", "regression", "inconclusive", "pass")),
        f"{case['smallest_ratio']:.3f} to {case['largest_ratio']:.3f}",
        f"{case['seconds_median']:.0f} s, {case['seconds_longest']:.0f} s",
    )


def int8_speed() -> str:
    """Our int8 files and those of ONNX Runtime's own tool, against fp32."""
    rows = []
    for row in read("latency")["int8"]["rows"]:
        ours, plain = row["ours_to_fp32"], row["plain_to_fp32"]
        low, high = ours["ci95"]
        rows.append(
            (
                f"{NETWORKS[row['model']]}, {row['side']}×{row['side']}",
                f"{1 / ours['median']:.1f}x ({1 / high:.1f} to {1 / low:.1f})",
                f"{1 / plain['median']:.1f}x",
                f"{row['bar']:.1f}x",
            )
        )
    return table(
        ["", "int8 is faster by (95 % interval)", "the plain tool's file", "required"], rows
    )


def int8_accuracy() -> str:
    """Test accuracy of the same files on trained networks."""
    rows = [
        (
            NETWORKS[row["model"]],
            *(percent(row["accuracy"][form], 2) for form in ("fp32", "int8", "plain")),
        )
        for row in read("latency")["int8_accuracy"]["rows"]
    ]
    return table(["", "fp32", "int8", "the plain tool's int8"], rows)


def int8_ranges() -> str:
    """What 7 bits cost, beside 8 bits and unsigned weights."""
    rows = []
    for row in read("latency")["ranges"]["rows"]:
        pair, ratio = row["against_fp32"], row.get("to_7_bits")
        low, high = pair["ci95"]
        difference = f"{100 * pair['difference']:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})"
        rows.append(
            (
                row["file"],
                f"{row['bytes']:,}",
                percent(row["accuracy"], 2),
                "" if row["file"] == "fp32" else difference,
                "" if ratio is None else f"{ratio['median']:.2f}",
            )
        )
    columns = ["weights", "bytes", "accuracy", "points against fp32 (95 %)", "p50 against 7 bits"]
    return table(columns, rows)


def statistics() -> str:
    """Verdicts by what stands for a block, from the same runs."""
    cases = read("gate")["statistics"]["cases"]
    rows = []
    for case, found in cases.items():
        texts = (
            ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items() if count)
            for verdicts in found.values()
        )
        rows.append((case, *texts))
    return table(["case", *next(iter(cases.values()))], rows)


TRAPS = {
    "ours": "edgecompress",
    "prepared": "plain tool, its best options",
    "not prepared": "plain tool, no pre-processing (of our export)",
    "per-tensor U8U8": "plain tool, one scale per tensor, U8U8",
    "S8S8": "plain tool, S8S8",
}


def traps() -> str:
    """Int8 files that are slow, or that run in float, without saying so."""
    rows = read("latency")["traps"]["rows"]
    found = {(row["model"], row["file"]): row for row in rows}
    body = [
        (name, _trap(found["vgg16", key]), _trap(found["resnet50", key]))
        for key, name in TRAPS.items()
    ]
    left = "three layers left in float"
    for who, name in (("ours", "edgecompress"), ("plain", "plain tool")):
        vgg, resnet = (str(found[model, left]["in_float"][who]) for model in ("vgg16", "resnet50"))
        body.append((f"of three layers left in float, {name} runs in float", vgg, resnet))
    return table(["file", "VGG16 at 224×224", "ResNet-50 at 224×224"], body)


def _trap(row: Mapping[str, Any]) -> str:
    text = f"{row['to_fp32']['median']:.2f}"
    if row["in_float"]:
        text += f", and {row['in_float']} of {row['layers']} layers in float"
    return text
