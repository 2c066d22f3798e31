"""Tables of compressing, pruning and distilling."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from docs.scripts.markdown import table
from docs.scripts.results.files import ROOT, bullets, percent, read, size


def _of_target(target: str) -> list[dict[str, Any]]:
    return [row for row in read("compress")["rows"] if row["target"] == target]


def compress() -> str:
    """`compress vgg16` to two sizes, several seeds each."""
    rows = []
    for target, summary in read("compress")["summary"].items():
        smallest, largest = summary["of_target"]
        low, high = summary["points_lost_interval95"]
        speedups = [row["speedup_of_format"] for row in _of_target(target)]
        teacher = percent(summary["teacher_accuracy_mean"])
        rows.append(
            (
                target.replace("MB", " MB").replace("KB", " KB"),
                f"{100 * smallest:.1f}-{percent(largest)}",
                f"{teacher} ({percent(summary['teacher_accuracy_min'])})",
                percent(summary["student_accuracy_mean"]),
                f"{summary['points_lost_mean']:.2f} ({low:.2f} to {high:.2f})",
                f"{summary['format_speedup_median']:.1f}x faster "
                f"({min(speedups):.1f} to {max(speedups):.1f})",
            )
        )
    columns = [
        "target",
        "file, of the target",
        "teacher, mean (lowest)",
        "student, mean",
        "points lost, mean paired difference (95 % interval)",
        "the format that ships against fp32 of the same network, median (range)",
    ]
    return table(columns, rows)


def compress_runs() -> str:
    """Time and memory of these runs."""
    rows = []
    for target, summary in read("compress")["summary"].items():
        seconds = [row["wall_s"] for row in _of_target(target)]
        rows.append(
            (
                target.replace("MB", " MB").replace("KB", " KB"),
                f"{min(seconds):.0f} to {max(seconds):.0f} s",
                f"{summary['wall_s_median']:.0f} s",
                f"{summary['peak_rss_bytes_max'] / 1e9:.1f} GB",
            )
        )
    return table(["target", "run", "median", "peak memory, at most"], rows)


def others() -> str:
    """Other networks to 1 MB."""
    rows = [
        (
            row["model"],
            size(row["teacher_bytes"]),
            f"{row['bytes']:,} bytes",
            percent(row["teacher_accuracy"]),
            percent(row["student_accuracy"]),
        )
        for row in read("compress-others")["rows"]
    ]
    return table(["network", "before", "after", "teacher", "student"], rows)


def rounding() -> str:
    """Latency of widths that are multiples of 8, against widths that are not."""
    rows = read("rounding")["rows"]
    shares = dict.fromkeys(row["share"] for row in rows)

    def ratio(share: float, number_format: str) -> str:
        row = next(r for r in rows if r["share"] == share and r["format"] == number_format)
        return f"{row['ratio']:.2f}"

    body = [(percent(s, 0), ratio(s, "fp32"), ratio(s, "int8-qdq")) for s in shares]
    return table(["MACs kept", "fp32", "int8"], body)


PRUNE_CASES = {
    "global 60 % of vgg16": "zero 60 % of VGG16 (138 M parameters), globally",
    "shrink vgg16 by half": "trace and shrink VGG16 by half",
    "shrink resnet50 by half": "trace and shrink ResNet-50 by half",
    "shrink densenet121 by half": "trace and shrink DenseNet-121 by half",
}


def prune() -> str:
    """Against torch.nn.utils.prune and Torch-Pruning."""
    rows = []
    for name, case in read("prune")["cases"].items():
        seconds, memory = case["seconds"], case["peak_above_loaded_mb"]
        ratio = seconds["ratio"]
        rows.append(
            (
                PRUNE_CASES[name],
                f"{seconds['ours']:.2f} s",
                f"{case['peer'].removesuffix('.global_unstructured')}: {_peer_seconds(seconds)}",
                f"{ratio:.3f}" if ratio < 0.1 else f"{ratio:.2f}",
                f"{memory['ours']:,.0f} MB; peer {memory['peer']:,.0f} MB",
            )
        )
    return table(["", "edgecompress", "peer", "ratio", "memory above the model's"], rows)


def _peer_seconds(seconds: Mapping[str, float]) -> str:
    return f"{seconds['peer']:.1f} s" if seconds["peer"] > 10 else f"{seconds['peer']:.2f} s"


def prune_epochs() -> str:
    """Seconds per epoch while VGG16 is halved before each epoch."""
    rows = [
        (str(row["epoch"]), f"{row['params'] / 1e6:.2f} M", f"{row['seconds']:.2f} s")
        for row in read("prune")["epochs"]
    ]
    return table(["epoch", "parameters", "time"], rows)


def reach() -> str:
    """The channel groups of torchvision's classification networks."""
    rows = []
    for row in read("reach")["rows"]:
        relative = row["difference"] / max(1.0, row["largest"])
        rows.append(
            (
                row["name"],
                f"{row['params'] / 1e6:.1f} M",
                str(row["groups"]),
                str(row["channels"]),
                str(row["frozen_channels"]),
                f"{'yes' if row['holds'] else '**no**'} ({relative:.1e})",
            )
        )
    columns = [
        "network",
        "parameters",
        "groups",
        "prunable channels",
        "frozen channels",
        "masked = shrunk",
    ]
    return table(columns, rows)


def reach_frozen() -> str:
    """Why channels are frozen, by family of networks."""
    reasons = {
        (row["name"].split("_")[0], reason)
        for row in read("reach")["rows"]
        for reason in row["frozen"]
    }
    return bullets(*(f"{family}: {reason}" for family, reason in sorted(reasons)))


def distill() -> str:
    """Student 3 on CIFAR-10, with its control and the source's own figures."""
    result = read("distill")
    teacher, student, lesson = result["teacher"], result["student"], result["distill"]
    source, control = lesson["source"], result["control"]
    rows = [
        (
            f"teacher: ResNet-20, {_teacher_epochs()} epochs",
            f"{teacher['params']:,}",
            f"{size(teacher['bytes'])}, fp32",
            percent(teacher["accuracy"], 2),
        ),
        (
            f"student 3, distilled, {lesson['epochs']} epochs",
            f"{lesson['params']:,} ({lesson['weights_bytes'] / 1024:,.0f} KiB of weights); "
            f"{student['params']:,} with its pool folded",
            f"{size(student['bytes'])}, int8",
            percent(student["accuracy"], 2),
        ),
        (
            f"control: {control['epochs']} epochs, no teacher",
            f"{lesson['params']:,}",
            "fp32",
            percent(control["accuracy"], 2),
        ),
        (
            f"student 3 in the source, {source['epochs']} epochs",
            f"{lesson['params']:,}",
            f"{source['weights_bytes'] / 1024:,.0f} KiB, fp32",
            f"{percent(source['accuracy'])} on its own CIFAR-10",
        ),
    ]
    return table(["", "parameters", "file", "test accuracy"], rows)


def _teacher_epochs() -> int:
    """Epochs of the recipe that trained the teacher."""
    recipe = ROOT / "recipes" / "cifar10" / "teacher.yaml"
    return int(yaml.safe_load(recipe.read_text(encoding="utf-8"))["stages"][0]["epochs"])


def distill_input() -> str:
    """Rate of the input pipeline, as a share of the same step on one batch that is ready."""
    rows = [
        (
            row["model"],
            "×".join(str(side) for side in row["image"][1:]),
            f"{row['images_per_s']:,.0f} images/s",
            percent(row["of_synthetic"], 0),
        )
        for row in read("distill")["input_pipeline"]["rows"]
    ]
    return table(["network", "images", "rate", "of the rate on a ready batch"], rows)
