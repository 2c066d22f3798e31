"""The latency check, measured: does it cry wolf, does it see a slow-down; and int8 against fp32.

    # int8 against fp32, ours and ONNX Runtime's own tool, 2 threads; 3 minutes
    python benchmarks/latency.py --int8
    # their accuracies on trained networks; 10 minutes
    python benchmarks/latency.py --int8 --data DIR
    # int8 files that are not what they seem, on VGG16 and ResNet-50; 17 minutes
    python benchmarks/latency.py --traps
    # a slow-down of 1.05x at 3 % tolerance, and of 1.5x; 8 minutes
    python benchmarks/latency.py --injected 20
    # a file against itself at 5 %, half of them with one core kept busy; 40 minutes
    python benchmarks/latency.py --same 200

DIR is CIFAR-10 (JPEG) with train/ and test/: the accuracies are of a ResNet-20 and a VGG16-BN
trained on 1,000 images of each class. Each comparison is `bench NEW --against OLD` with its
defaults on one thread. Results go to benchmarks/results/latency.json.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edgecompress.export import onnx as onnx_export
from edgecompress.export import quantize as quantizer
from edgecompress.measure import machine, regression, runtime

RESULTS = Path(__file__).parent / "results" / "latency.json"
VERDICTS = ("pass", "inconclusive", "regression")


def store(**parts: Any) -> None:
    """Put `parts` into the result file, whole."""
    known = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    temporary = RESULTS.with_suffix(".tmp")
    temporary.write_text(json.dumps({**known, **parts}, indent=1) + "\n")
    temporary.replace(RESULTS)


def chain(layers: int, path: Path) -> Path:
    """A file of `layers` equal convolutions (16 channels, 3×3, 32×32): one layer more is one share
    more of time.
    """
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Conv2d(16, 16, 3, padding=1) for _ in range(layers))).eval()
    onnx_export.save(onnx_export.to_onnx(model, torch.zeros(1, 16, 32, 32)), path)
    return path


def same(count: int) -> None:
    """A file against a copy of itself: every `regression` is a false alarm."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        one, two = (chain(20, Path(name) / f"{part}.onnx") for part in ("one", "two"))
        for number in range(count):
            busy = number % 2 == 1
            keeper = multiprocessing.Process(target=spin, daemon=True) if busy else None
            if keeper is not None:
                keeper.start()
            start = time.perf_counter()
            found = regression.compare(one, two, 0.05, regression.Protocol(threads=1, seed=number))
            if keeper is not None:
                keeper.terminate()
                keeper.join()
            rows.append(
                {
                    "busy": busy,
                    "ratio": found["ratio"],
                    "verdict": found["verdict"],
                    "processes": found["processes"],
                    "seconds": time.perf_counter() - start,
                }
            )
            if number % 10 == 9:
                parts = {
                    "quiet": [r for r in rows if not r["busy"]],
                    "busy": [r for r in rows if r["busy"]],
                }
                summary = {
                    kind: {
                        "comparisons": len(part),
                        **{v: sum(r["verdict"] == v for r in part) for v in VERDICTS},
                        "beyond_2_percent": sum(r["ratio"]["median"] > 1.02 for r in part),
                        "largest_ratio": max(r["ratio"]["median"] for r in part),
                        "seconds": statistics.median(r["seconds"] for r in part),
                    }
                    for kind, part in parts.items()
                }
                store(
                    same={
                        "command": f"python benchmarks/latency.py --same {count}",
                        "max_regression": 0.05,
                        "summary": summary,
                        "hardware": machine.hardware(),
                        "versions": machine.versions(),
                        "rows": rows,
                    }
                )
                print(number + 1, json.dumps(summary), flush=True)


def spin() -> None:
    """Keep one core busy."""
    os.sched_setaffinity(0, {0})
    while True:
        sum(range(10_000))


def injected(count: int) -> None:
    """A real slow-down: 42 layers against 40 (1.05x) at 3 %, 60 against 40 (1.5x) at 5 %."""
    told = {}
    with tempfile.TemporaryDirectory() as name:
        base = chain(40, Path(name) / "40.onnx")
        for layers, tolerance in ((42, 0.03), (60, 0.05)):
            slower = chain(layers, Path(name) / f"{layers}.onnx")
            rows = []
            for number in range(count):
                start = time.perf_counter()
                found = regression.compare(
                    slower, base, tolerance, regression.Protocol(threads=1, seed=number)
                )
                rows.append(
                    {
                        "ratio": found["ratio"],
                        "verdict": found["verdict"],
                        "processes": found["processes"],
                        "seconds": time.perf_counter() - start,
                    }
                )
                caught = sum(row["verdict"] == "regression" for row in rows)
                print(layers, number + 1, caught, rows[-1], flush=True)
                told[f"{layers / 40:g}x"] = {
                    "layers": [layers, 40],
                    "max_regression": tolerance,
                    "comparisons": len(rows),
                    "caught": caught,
                    "rows": rows,
                }
                store(
                    injected={
                        "command": f"python benchmarks/latency.py --injected {count}",
                        **told,
                        "hardware": machine.hardware(),
                        "versions": machine.versions(),
                    }
                )


def plain_tool(
    fp32: Path,
    target: Path,
    batches: list[np.ndarray[Any, Any]],
    *,
    prepare: bool = True,
    **other: Any,
) -> None:
    """ONNX Runtime's `quantize_static` as its examples call it: pre-processed, per channel, QDQ,
    uint8 activations and int8 weights.

    `other` overrides its options; without `prepare` the file is not pre-processed.
    """
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter(batches)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.left, None)
            return None if batch is None else {"input": batch}

    source = fp32
    if prepare:
        source = target.with_suffix(".prepared.onnx")
        quant_pre_process(str(fp32), str(source), skip_symbolic_shape=True)
    options = {
        "per_channel": True,
        "activation_type": QuantType.QUInt8,
        "weight_type": QuantType.QInt8,
        "reduce_range": not machine.has_int8_dot(),
        **other,
    }
    quantize_static(str(source), str(target), Reader(), quant_format=QuantFormat.QDQ, **options)


def traps() -> None:
    """Int8 files that the plain tool makes with other options, against fp32: layers that run in
    float, and how fast they are.
    """
    from onnxruntime.quantization import QuantType

    from edgecompress.models import ModelSource, build

    rows = []
    for model in ("vgg16", "resnet50"):
        with tempfile.TemporaryDirectory() as name:
            work, shape = Path(name), (3, 224, 224)
            torch.manual_seed(0)
            fp32 = work / "fp32.onnx"
            onnx_export.save(
                onnx_export.to_onnx(
                    build(ModelSource(model, 1000, shape)).eval(), torch.zeros(1, *shape)
                ),
                fp32,
            )
            batches = [
                np.random.default_rng(n).standard_normal((4, *shape)).astype(np.float32)
                for n in range(4)
            ]
            calibrated = quantizer.calibrate(fp32, batches)
            onnx_export.save(quantizer.quantized(calibrated), work / "ours.onnx")
            plain_tool(fp32, work / "prepared.onnx", batches)
            plain_tool(fp32, work / "not prepared.onnx", batches, prepare=False)
            plain_tool(
                fp32,
                work / "per-tensor U8U8.onnx",
                batches,
                per_channel=False,
                weight_type=QuantType.QUInt8,
            )
            plain_tool(fp32, work / "S8S8.onnx", batches, activation_type=QuantType.QInt8)
            for kind in ("ours", "prepared", "not prepared", "per-tensor U8U8", "S8S8"):
                path = work / f"{kind}.onnx"
                found = regression.compare(
                    path, fp32, 0.0, regression.Protocol(threads=2, looks=())
                )
                rows.append(
                    {
                        "model": model,
                        "file": kind,
                        "layers": len(calibrated.layers()),
                        "in_float": len(quantizer.float_layers(path)),
                        "to_fp32": found["ratio"],
                        "p50_ms": [found["candidate"]["p50_ms"], found["baseline"]["p50_ms"]],
                        "bytes": path.stat().st_size,
                    }
                )
                print(json.dumps(rows[-1]), flush=True)
            kept = list(calibrated.layers())[3:6]
            onnx_export.save(quantizer.quantized(calibrated, exclude=kept), work / "ours.onnx")
            plain_tool(
                fp32,
                work / "plain.onnx",
                batches,
                nodes_to_exclude=[node for layer in kept for node in calibrated.layers()[layer]],
            )
            rows.append(
                {
                    "model": model,
                    "file": "three layers left in float",
                    "in_float": {
                        kind: len(quantizer.float_layers(work / f"{kind}.onnx"))
                        for kind in ("ours", "plain")
                    },
                }
            )
            print(json.dumps(rows[-1]), flush=True)
        store(
            traps={
                "command": "python benchmarks/latency.py --traps",
                "threads": 2,
                "rows": rows,
                "hardware": machine.hardware(),
                "versions": machine.versions(),
            }
        )


def int8(folder: Path | None, epochs: int) -> None:
    """fp32, our int8, and the plain tool's: without data their speeds, two at a time in fresh
    processes; with data their accuracies.
    """
    from edgecompress.models import ModelSource, build

    rows, speeds = [], folder is None
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for model, side, bar in (("vgg16_bn", 32, 3.3), ("resnet20", 32, 1.5), ("vgg16", 224, 3.1)):
            if folder is not None and side != 32:
                continue
            row: dict[str, Any] = {"model": model, "side": side, "bar": bar}
            paths = {kind: work / f"{model}-{kind}.onnx" for kind in ("fp32", "int8", "plain")}
            data = None
            if folder is not None and side == 32:
                data, shape = trained(folder, model, epochs, work), (3, 32, 32)
                paths["fp32"] = work / model / "model-fp32.onnx"
                batches = [
                    data.normalised(part).numpy() for part in data.train.pixels[:256].split(32)
                ]
            else:
                torch.manual_seed(0)
                shape = (3, side, side)
                network = build(ModelSource(model, 10 if side == 32 else 1000, shape)).eval()
                onnx_export.save(
                    onnx_export.to_onnx(network, torch.zeros(1, *shape)), paths["fp32"]
                )
                batches = [
                    np.random.default_rng(n).standard_normal((4, *shape)).astype(np.float32)
                    for n in range(8)
                ]
            onnx_export.save(
                quantizer.to_int8(paths["fp32"], lambda batches=batches: batches), paths["int8"]
            )  # type: ignore[misc]
            plain_tool(paths["fp32"], paths["plain"], batches)
            row["bytes"] = {kind: path.stat().st_size for kind, path in paths.items()}
            if speeds:
                protocol = regression.Protocol(threads=2, looks=())
                pairs = (
                    ("ours_to_fp32", "int8", "fp32"),
                    ("plain_to_fp32", "plain", "fp32"),
                    ("ours_to_plain", "int8", "plain"),
                )
                for what, new, old in pairs:
                    found = regression.compare(paths[new], paths[old], 0.0, protocol)
                    row[what] = {
                        **found["ratio"],
                        "p50_ms": [found["candidate"]["p50_ms"], found["baseline"]["p50_ms"]],
                    }
                row["speedup"] = 1 / row["ours_to_fp32"]["median"]
            if data is not None:
                loaded = [runtime.load(path, threads=2) for path in paths.values()]
                row["images"] = len(data.test)
                row["accuracy"] = {
                    kind: runtime.accuracy(
                        one.run_all(
                            data.normalised(part).numpy() for part in data.test.pixels.split(64)
                        ),
                        data.test.labels.numpy(),
                    )
                    for kind, one in zip(paths, loaded, strict=True)
                }
            rows.append(row)
            print(json.dumps(row), flush=True)
            told = {
                "threads": 2,
                "rows": rows,
                "hardware": machine.hardware(),
                "versions": machine.versions(),
            }
            if speeds:
                store(int8={"command": "python benchmarks/latency.py --int8", **told})
            else:
                store(
                    int8_accuracy={
                        "command": "python benchmarks/latency.py --int8 --data DIR --epochs "
                        f"{epochs}",
                        **told,
                    }
                )


def trained(folder: Path, model: str, epochs: int, work: Path) -> Any:
    """Train `model` on 1,000 images of each class, export it into `work`/model; the data."""
    from edgecompress.data import load_data

    links = work / "cifar10-jpeg"
    if not links.is_dir():
        for split, most in (("train", 1000), ("test", None)):
            for label in sorted(path for path in (folder / split).iterdir() if path.is_dir()):
                (links / split / label.name).mkdir(parents=True)
                for path in sorted(label.iterdir())[:most]:
                    (links / split / label.name / path.name).symlink_to(path.resolve())
    shared = ["--data", f"folder:{links}", "-q"]
    for verb in (
        [
            "train",
            model,
            "--epochs",
            str(epochs),
            "--batch-size",
            "64",
            "--precision",
            "bf16",
            "-o",
            str(work / f"{model}-t"),
        ],
        ["export", str(work / f"{model}-t"), "-o", str(work / model)],
    ):
        subprocess.run(
            [sys.executable, "-m", "edgecompress", *verb, *shared],
            check=True,
            stdout=subprocess.DEVNULL,
        )
    return load_data(f"folder:{links}")


def main() -> None:
    """What was asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--int8", action="store_true")
    parser.add_argument("--data", type=Path, metavar="DIR")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--traps", action="store_true")
    parser.add_argument("--injected", type=int, default=0)
    parser.add_argument("--same", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.int8:
        int8(arguments.data, arguments.epochs)
    if arguments.traps:
        traps()
    if arguments.injected:
        injected(arguments.injected)
    if arguments.same:
        same(arguments.same)


if __name__ == "__main__":
    main()
