"""The main job, measured: `compress` on digits over several seeds, and other networks at 1 MB.

    # 5 seeds: vgg16 to 4 MB and 250 KB; about 35 minutes on 2 cores
    python benchmarks/compress.py
    # resnet18, densenet121, mobilenet_v2 to 1 MB, seed 0, 5 epochs
    python benchmarks/compress.py --others

Every run is the real command in a process of its own. The 250 KB run takes the teacher of the 4 MB
run of the same seed. Accuracies are of the ONNX files on digits' test split (359 images), which
nothing else reads. Results go to benchmarks/results/, after every run.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
STUDENT_T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}
"""97.5 % point of Student's t for n values (n - 1 degrees of freedom)."""


def compress(model: str, target: str, seed: int, folder: Path, *more: str) -> dict[str, Any]:
    """One run of the command; the wall time is that of the whole process."""
    command = [
        sys.executable,
        "-m",
        "edgecompress.cli.app",
        "compress",
        model,
        "--target",
        target,
        "--seed",
        str(seed),
        "--json",
        "-o",
        str(folder),
        *more,
    ]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wall_s = time.perf_counter() - start
    if done.returncode not in (0, 3):
        raise SystemExit(f"{' '.join(command)}\nexit {done.returncode}: {done.stderr}")
    result = json.loads(done.stdout)
    fp32 = next(row for row in result["formats"] if row["format"] == "fp32")
    ships = next(row for row in result["formats"] if row["format"] == result["format"])
    return {
        "model": model,
        "target": target,
        "seed": seed,
        "exit": done.returncode,
        "format": result["format"],
        "bytes": result["bytes"],
        "of_target": result["bytes"] / result["target_bytes"],
        "teacher_accuracy": result["teacher"]["accuracy"],
        "student_accuracy": result["student"]["accuracy"],
        "teacher_bytes": result["teacher"]["bytes"],
        "student_params": result["student"]["params"],
        "student_macs": result["student"]["macs"],
        "teacher_p50_ms": result["teacher"]["latency_ms"]["p50"],
        "student_p50_ms": result["student"]["latency_ms"]["p50"],
        "fp32_same_network_p50_ms": fp32["p50_ms"],
        "ships_p50_ms": ships["p50_ms"],
        "speedup_of_format": fp32["p50_ms"] / ships["p50_ms"],
        "max_abs_logit_diff": result["parity"]["max_abs_logit_diff"],
        "top1_agreement": result["parity"]["top1_agreement"],
        "wall_s": wall_s,
        "peak_rss_bytes": result["peak_rss_bytes"],
        "hardware": result["hardware"],
        "versions": result["versions"],
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


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Per target: paired differences student - teacher in points, ranges of size, time and
    memory.
    """
    summary = {}
    for target in dict.fromkeys(row["target"] for row in rows):
        mine = [row for row in rows if row["target"] == target]
        points = [100 * (row["student_accuracy"] - row["teacher_accuracy"]) for row in mine]
        mean, low, high = interval(points)
        summary[target] = {
            "seeds": [row["seed"] for row in mine],
            "teacher_accuracy_mean": statistics.fmean(row["teacher_accuracy"] for row in mine),
            "teacher_accuracy_min": min(row["teacher_accuracy"] for row in mine),
            "student_accuracy_mean": statistics.fmean(row["student_accuracy"] for row in mine),
            "points_lost_mean": -mean,
            "points_lost_interval95": [-high, -low] if len(mine) > 1 else None,
            "of_target": [
                min(row["of_target"] for row in mine),
                max(row["of_target"] for row in mine),
            ],
            "wall_s_median": statistics.median(row["wall_s"] for row in mine),
            "wall_s_max": max(row["wall_s"] for row in mine),
            "peak_rss_bytes_max": max(row["peak_rss_bytes"] for row in mine),
            "format_speedup_median": statistics.median(row["speedup_of_format"] for row in mine),
        }
    return summary


def store(name: str, rows: list[dict[str, Any]], **more: Any) -> None:
    """Write what is known so far, whole."""
    RESULTS.mkdir(exist_ok=True)
    command = f"python benchmarks/compress.py{' --others' if name == 'compress-others' else ''}"
    content = {
        "command": command,
        "data": "digits (demo), test split of 359 images",
        **more,
        "rows": rows,
    }
    temporary = RESULTS / f".{name}.tmp"
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    temporary.replace(RESULTS / f"{name}.json")


def main() -> None:
    """Run what was asked, printing a row a run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--others", action="store_true")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        if arguments.others:
            for model in ("mobilenet_v2", "densenet121", "resnet18"):
                rows.append(compress(model, "1MB", 0, work / model, "--epochs", "5"))
                show(rows[-1])
                store("compress-others", rows)
            return
        for seed in range(arguments.seeds):
            rows.append(compress("vgg16", "4MB", seed, work / "first"))
            show(rows[-1])
            store("compress", rows, summary=summarise(rows))
            teacher = work / "first" / "01-train" / "model.safetensors"
            rows.append(
                compress("vgg16", "250KB", seed, work / "second", "--teacher", str(teacher))
            )
            show(rows[-1])
            store("compress", rows, summary=summarise(rows))
            shutil.rmtree(work / "first")
            shutil.rmtree(work / "second")
    print(json.dumps(summarise(rows), indent=1))


def show(row: dict[str, Any]) -> None:
    """One line."""
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


if __name__ == "__main__":
    main()
