"""The two tables of the README."""

from __future__ import annotations

from typing import cast

from docs.scripts.markdown import table
from docs.scripts.results.files import percent, read
from edgecompress.report.html import comparison
from edgecompress.run.schema import RunResult


def demo() -> str:
    """What `make demo` ends with."""
    result = read("demo-vnni")
    hardware = result["hardware"]
    processor = f"{hardware['cpu']}{' with VNNI' if hardware['int8_dot'] else ''}"
    caption = (
        f"`vgg16` on digits (demo), {result['format']}; {processor}, {hardware['cores']} cores, "
        f"no GPU: {result['make_demo_s']:.0f} s after the installation "
        "(`benchmarks/results/demo-vnni.json`)."
    )
    rows = comparison(cast(RunResult, result))  # as the command prints it
    return f"{table(['', 'before', 'after', 'ratio'], rows)}\n\n{caption}"


def proven() -> str:
    """Five results, each with the file that holds it."""
    rows = [_compress(), _reach(), _check(), _merge(), _soft()]
    return table(["", "result", "conditions", "result file"], rows)


def _compress() -> tuple[str, str, str, str]:
    demo = read("demo-vnni")
    difference = demo["accuracy_difference"]
    low, high = difference["ci95"]
    return (
        "`compress vgg16 --target 4MB`",
        f"{demo['teacher']['bytes'] / 1e6:.1f} MB to {demo['bytes'] / 1e6:.2f} MB; "
        f"{-100 * difference['difference']:.2f} points of accuracy lost (95 % interval "
        f"{-100 * high:.2f} to {-100 * low:.2f})",
        f"digits (demo), {difference['n']} images",
        "`demo-vnni.json`",
    )


def _reach() -> tuple[str, str, str, str]:
    rows = read("reach")["rows"]
    holding = sum(row["holds"] for row in rows)
    return (
        "removing channels",
        f"{holding} of {len(rows)} networks compute the same as with the channels at zero, "
        "within 1e-5",
        "torchvision's classification CNNs, 60 % of all channels kept",
        "`reach.json`",
    )


def _check() -> tuple[str, str, str, str]:
    gate = read("gate")
    same = gate["same"]["summary"].values()
    equal = sum(case["comparisons"] for case in same)
    alarms = sum(case["regression"] for case in same)
    found = ", ".join(
        f"{case['regression']} of {case['comparisons']} slow-downs ({name})"
        for name, case in gate["injected"]["cases"].items()
    )
    return (
        "`bench --against`",
        f"detected {found}; {alarms} false alarms in {equal} comparisons of a file with itself",
        "tolerance 1 % for 1.03x, else 5 %; half of the equal ones beside busy processes",
        "`gate.json`",
    )


def _merge() -> tuple[str, str, str, str]:
    summary = read("merge")["sine"]["summary"]
    against = read("merge")["sine"]["student_against"]["bo3"]
    return (
        "`merge`",
        f"median test loss {summary['student']['median']:.3f}, best of three networks "
        f"{summary['bo3']['median']:.3f} (p = {against['p']:.0e})",
        "sine problem, 900 epochs per strategy, 50 results each",
        "`merge.json`",
    )


def _soft() -> tuple[str, str, str, str]:
    lessons = read("emulate")["lessons"]
    soft = [row["bytes_per_sample"] for row in lessons["rows"] if row["how"] == "soft"]
    dense = next(row["bytes_per_sample"] for row in lessons["rows"] if row["how"] == "fp32")
    means = lessons["means"]
    return (
        "distillation over a link, `--codec soft`",
        f"{max(soft):.2f} bytes per sample instead of {dense:.0f}; {percent(means['soft'], 2)} "
        f"accuracy, with fp32 logits {percent(means['fp32'], 2)}",
        f"LeNet-5 on digits (demo), {len(soft)} seeds; one image is 0.28 points",
        "`emulate.json`",
    )
