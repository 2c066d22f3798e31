"""The latency check, measured: false alarms, and slow-downs that it sees; and int8 against fp32.

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

import contextlib
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from common import Bench, Row, add_images, bench_of, parser
from edgecompress.export import onnx as onnx_export
from edgecompress.measure import regression
from int8_files import int8, traps

VERDICTS = ("pass", "inconclusive", "regression")


def chain(layers: int, path: Path) -> Path:
    """A file of `layers` equal convolutions (16 channels, 3×3, 32×32): one layer more is one share
    more of time.
    """
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Conv2d(16, 16, 3, padding=1) for _ in range(layers))).eval()
    onnx_export.save(onnx_export.to_onnx(model, torch.zeros(1, 16, 32, 32)), path)
    return path


def compared(bench: Bench, new: Path, old: Path, tolerance: float, seed: int) -> Row:
    """One comparison on one thread: its verdict and how long it took."""
    full = regression.Protocol(threads=1, seed=seed)
    quick = regression.Protocol(threads=1, seed=seed, processes=2, looks=(), blocks=5, block_ms=1.0)
    start = time.perf_counter()
    answer = regression.compare(new, old, tolerance, bench.size(full, quick))
    row = {key: answer[key] for key in ("ratio", "verdict", "processes")}
    return {**row, "seconds": time.perf_counter() - start}


def same(bench: Bench, count: int) -> None:
    """A file against a copy of itself: every `regression` is a false alarm."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        first, copy = (chain(20, Path(name) / f"{part}.onnx") for part in ("one", "two"))
        for number in range(count):
            busy = number % 2 == 1
            with busy_core() if busy else contextlib.nullcontext():
                rows.append({"busy": busy, **compared(bench, first, copy, 0.05, number)})
            if number % 10 == 9 or number == count - 1:
                store_same(bench, count, rows)


def store_same(bench: Bench, count: int, rows: list[Row]) -> None:
    """Store the comparisons so far."""
    parts = {
        "quiet": [row for row in rows if not row["busy"]],
        "busy": [row for row in rows if row["busy"]],
    }
    summary = {kind: false_alarms(part) for kind, part in parts.items() if part}
    described = {**bench.described("--same", count), "max_regression": 0.05}
    bench.store(same={**described, "summary": summary, "rows": rows})
    print(len(rows), json.dumps(summary), flush=True)


def false_alarms(rows: list[Row]) -> Row:
    """Verdicts of comparisons of equal files."""
    ratios = [row["ratio"]["median"] for row in rows]
    return {
        "comparisons": len(rows),
        **{verdict: sum(row["verdict"] == verdict for row in rows) for verdict in VERDICTS},
        "beyond_2_percent": sum(ratio > 1.02 for ratio in ratios),
        "largest_ratio": max(ratios),
        "seconds": statistics.median(row["seconds"] for row in rows),
    }


@contextlib.contextmanager
def busy_core() -> Iterator[None]:
    """One core is kept busy inside the block."""
    keeper = multiprocessing.Process(target=spin, daemon=True)
    keeper.start()
    try:
        yield
    finally:
        keeper.terminate()
        keeper.join()


def spin() -> None:
    """Keep one core busy."""
    os.sched_setaffinity(0, {0})
    while True:
        sum(range(10_000))


def injected(bench: Bench, count: int) -> None:
    """A real slow-down: 42 layers against 40 (1.05x) at 3 %, 60 against 40 (1.5x) at 5 %."""
    base_layers = bench.size(40, 20)
    parts: Row = {}
    with tempfile.TemporaryDirectory() as name:
        base = chain(base_layers, Path(name) / "base.onnx")
        for factor, tolerance in ((1.05, 0.03), (1.5, 0.05)):
            layers = round(base_layers * factor)
            slower = chain(layers, Path(name) / f"{layers}.onnx")
            rows: list[Row] = []
            for number in range(count):
                rows.append(compared(bench, slower, base, tolerance, number))
                caught = sum(row["verdict"] == "regression" for row in rows)
                print(layers, number + 1, caught, rows[-1], flush=True)
                parts[f"{factor:g}x"] = {
                    "layers": [layers, base_layers],
                    "max_regression": tolerance,
                    "comparisons": len(rows),
                    "caught": caught,
                    "rows": rows,
                }
                bench.store(injected={**bench.described("--injected", count), **parts})


def main() -> None:
    """Run the parts that the options select."""
    options = parser(__doc__)
    options.add_argument("--int8", action="store_true")
    add_images(options, "--data")
    options.add_argument("--epochs", type=int, default=12)
    options.add_argument("--traps", action="store_true")
    options.add_argument("--injected", type=int, default=0)
    options.add_argument("--same", type=int, default=0)
    arguments = options.parse_args()
    bench = bench_of(__file__, arguments)
    if arguments.int8:
        int8(bench, arguments.data, bench.size(arguments.epochs, 1))
    if arguments.traps:
        traps(bench)
    if arguments.injected:
        injected(bench, arguments.injected)
    if arguments.same:
        same(bench, arguments.same)


if __name__ == "__main__":
    main()
