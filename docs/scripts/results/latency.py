"""Tables of the latency check and of int8 files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from docs.scripts.markdown import table
from docs.scripts.results.files import percent, read

NETWORKS = {"vgg16_bn": "VGG16-BN", "resnet20": "ResNet-20", "vgg16": "VGG16"}


def check() -> str:
    """Slow-downs that were injected, and comparisons of a file with itself."""
    result = read("latency")
    rows = [
        (
            f"slower by {name}",
            percent(case["max_regression"], 0),
            str(case["comparisons"]),
            str(case["caught"]),
            "",
            "",
            "",
        )
        for name, case in result["injected"].items()
        if isinstance(case, dict) and "caught" in case
    ]
    for key, name in (("same", "a file against itself"), ("same_again", "the same, later")):
        for condition, case in result[key]["summary"].items():
            rows.append(_same(name, condition, result[key]["max_regression"], case))
    columns = [
        "case",
        "tolerance",
        "comparisons",
        "regressions reported",
        "differ by 2 %",
        "largest ratio",
        "time, median",
    ]
    return table(columns, rows)


def _same(name: str, condition: str, tolerance: float, case: Mapping[str, Any]) -> tuple[str, ...]:
    where = "both cores idle" if condition == "quiet" else "one core busy"
    return (
        f"{name}, {where}",
        percent(tolerance, 0),
        str(case["comparisons"]),
        str(case["regression"]),
        str(case["beyond_2_percent"]),
        f"{case['largest_ratio']:.3f}",
        f"{case['seconds']:.1f} s",
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
        counts = [str(found[model, left]["in_float"][who]) for model in ("vgg16", "resnet50")]
        body.append((f"of three layers left in float, {name} runs in float", *counts))
    return table(["file", "VGG16 at 224×224", "ResNet-50 at 224×224"], body)


def _trap(row: Mapping[str, Any]) -> str:
    text = f"{row['to_fp32']['median']:.2f}"
    if row["in_float"]:
        text += f", and {row['in_float']} of {row['layers']} layers in float"
    return text
