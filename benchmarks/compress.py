"""The main job, measured: `compress` on digits over several seeds, and other networks at 1 MB.

    # vgg16 to 4 MB and 250 KB; about 7 minutes a seed on 2 cores
    python benchmarks/compress.py --seeds 5
    # resnet18, densenet121, mobilenet_v2 to 1 MB, seed 0, 5 epochs
    python benchmarks/compress.py --others

Every run is the real command in a process of its own. The 250 KB run takes the teacher of the 4 MB
run of the same seed. Accuracies are of the ONNX files on digits' test split (359 images), which
nothing else reads. Results go to benchmarks/results/, after every run.
"""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from common import SEED, SMOKE_IMAGES, Bench, Row, bench_of, edgecompress, parser

STUDENT_T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}
"""97.5 % point of Student's t for n values (n - 1 degrees of freedom)."""


@dataclass(frozen=True)
class Size:
    """Networks and targets of a run, and the options that all its commands take."""

    model: str
    targets: tuple[str, str]
    others: tuple[str, ...]
    other_target: str
    options: tuple[str, ...] = ()
    other_options: tuple[str, ...] = ("--epochs", "5")


FULL = Size("vgg16", ("4MB", "250KB"), ("mobilenet_v2", "densenet121", "resnet18"), "1MB")
QUICK = ("--epochs", "1", "--distill-epochs", "1", "--steps", "1")
SMOKE = Size("lenet5", ("100KB", "40KB"), ("lenet5",), "100KB", QUICK, ())
"""The unpruned LeNet-5 fits the larger target; it is pruned for the smaller one."""


def compress(model: str, target: str, seed: int, folder: Path, *more: str) -> Row:
    """One run of the command; the wall time is that of the complete process."""
    options = ("--target", target, "--seed", seed, "--json", "-o", folder, *more)
    start = time.perf_counter()
    result = edgecompress("compress", model, *options, exits=(0, 3))
    wall_s = time.perf_counter() - start
    run = {"model": model, "target": target, "seed": seed, "exit": result["exit"]}
    return {
        **run,
        **networks(result),
        **speeds(result),
        "max_abs_logit_diff": result["parity"]["max_abs_logit_diff"],
        "top1_agreement": result["parity"]["top1_agreement"],
        "wall_s": wall_s,
        "peak_rss_bytes": result["peak_rss_bytes"],
        "hardware": result["hardware"],
        "versions": result["versions"],
    }


def networks(result: Row) -> Row:
    """Sizes and accuracies of both networks."""
    teacher, student = result["teacher"], result["student"]
    return {
        "format": result["format"],
        "bytes": result["bytes"],
        "of_target": result["bytes"] / result["target_bytes"],
        "teacher_accuracy": teacher["accuracy"],
        "student_accuracy": student["accuracy"],
        "teacher_bytes": teacher["bytes"],
        "student_params": student["params"],
        "student_macs": student["macs"],
    }


def speeds(result: Row) -> Row:
    """Median latencies, and what the format alone gains over fp32."""
    fp32 = next(row for row in result["formats"] if row["format"] == "fp32")
    ships = next(row for row in result["formats"] if row["format"] == result["format"])
    return {
        "teacher_p50_ms": result["teacher"]["latency_ms"]["p50"],
        "student_p50_ms": result["student"]["latency_ms"]["p50"],
        "fp32_same_network_p50_ms": fp32["p50_ms"],
        "ships_p50_ms": ships["p50_ms"],
        "speedup_of_format": fp32["p50_ms"] / ships["p50_ms"],
    }


def interval(values: list[float]) -> tuple[float, float, float]:
    """(mean, low, high): the mean and its 95 % interval by Student's t; one value has no
    interval.
    """
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, float("-inf"), float("inf")
    half = STUDENT_T[len(values)] * statistics.stdev(values) / len(values) ** 0.5
    return mean, mean - half, mean + half


def summarise(rows: list[Row]) -> Row:
    """Per target: paired differences student - teacher in points, ranges of size, time and
    memory.
    """
    targets = dict.fromkeys(row["target"] for row in rows)
    return {target: summary([r for r in rows if r["target"] == target]) for target in targets}


def summary(rows: list[Row]) -> Row:
    """The same, of the rows of one target."""
    points = [100 * (row["student_accuracy"] - row["teacher_accuracy"]) for row in rows]
    mean, low, high = interval(points)
    sizes = [row["of_target"] for row in rows]
    return {
        "seeds": [row["seed"] for row in rows],
        "teacher_accuracy_mean": statistics.fmean(row["teacher_accuracy"] for row in rows),
        "teacher_accuracy_min": min(row["teacher_accuracy"] for row in rows),
        "student_accuracy_mean": statistics.fmean(row["student_accuracy"] for row in rows),
        "points_lost_mean": -mean,
        "points_lost_interval95": [-high, -low] if len(rows) > 1 else None,
        "of_target": [min(sizes), max(sizes)],
        "wall_s_median": statistics.median(row["wall_s"] for row in rows),
        "wall_s_max": max(row["wall_s"] for row in rows),
        "peak_rss_bytes_max": max(row["peak_rss_bytes"] for row in rows),
        "format_speedup_median": statistics.median(row["speedup_of_format"] for row in rows),
    }


def several_seeds(bench: Bench, size: Size, seeds: int, work: Path) -> None:
    """Both targets for every seed."""
    rows: list[Row] = []

    def record(row: Row) -> None:
        rows.append(row)
        show(row)
        parts = {"data": data_label(bench), "summary": summarise(rows), "rows": rows}
        bench.store("compress", command=bench.command("--seeds", seeds), **parts)

    large, small = size.targets
    for seed in range(seeds):
        record(compress(size.model, large, seed, work / "first", *size.options))
        teacher = work / "first" / "01-train" / "model.safetensors"
        options = [*without_epochs(size.options), "--teacher", str(teacher)]
        record(compress(size.model, small, seed, work / "second", *options))
        shutil.rmtree(work / "first")
        shutil.rmtree(work / "second")
    print(json.dumps(summarise(rows), indent=1))


def without_epochs(options: tuple[str, ...]) -> list[str]:
    """`options` without --epochs, which a trained teacher does not take."""
    pairs = zip(options[::2], options[1::2], strict=True)
    return [word for pair in pairs if pair[0] != "--epochs" for word in pair]


def other_networks(bench: Bench, size: Size, work: Path) -> None:
    """One run of each of the other networks."""
    rows: list[Row] = []
    for model in size.others:
        options = (*size.options, *size.other_options)
        rows.append(compress(model, size.other_target, SEED, work / model, *options))
        show(rows[-1])
        parts = {"data": data_label(bench), "rows": rows}
        bench.store("compress-others", command=bench.command("--others"), **parts)


def data_label(bench: Bench) -> str:
    """What the accuracies are of."""
    return bench.size("digits (demo), test split of 359 images", "80 images of digits")


def show(row: Row) -> None:
    """One line per run."""
    size = (
        f"{row['bytes']} bytes ({row['of_target']:.1%}), {row['format']} "
        f"({row['speedup_of_format']:.2f}x fp32)"
    )
    accuracy = f"teacher {row['teacher_accuracy']:.4f}, student {row['student_accuracy']:.4f}"
    speed = f"p50 {row['teacher_p50_ms']:.2f} -> {row['student_p50_ms']:.2f} ms"
    run = f"{row['wall_s']:.0f} s, {row['peak_rss_bytes'] / 1e9:.2f} GB"
    print(
        f"{row['model']} {row['target']} seed {row['seed']}: exit {row['exit']}, {size}, "
        f"{accuracy}, {speed}, {run}",
        flush=True,
    )


def main() -> None:
    """Run the parts that the options select."""
    options = parser(__doc__)
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--others", action="store_true")
    arguments = options.parse_args()
    bench = bench_of(__file__, arguments)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        size = sized(bench, work)
        if arguments.others:
            other_networks(bench, size, work)
        else:
            several_seeds(bench, size, bench.size(arguments.seeds, 1), work)


def sized(bench: Bench, work: Path) -> Size:
    """The size of this run; at smoke size all commands read a few images only."""
    if not bench.smoke:
        return FULL
    data = f"folder:{bench.images(SMOKE_IMAGES, work)}"
    return Size(
        SMOKE.model,
        SMOKE.targets,
        SMOKE.others,
        SMOKE.other_target,
        (*SMOKE.options, "--data", data),
        SMOKE.other_options,
    )


if __name__ == "__main__":
    main()
