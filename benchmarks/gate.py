"""The latency gate, measured: false alarms, and slow-downs that it sees.

    # 200 times a file against itself at 5 %, half of them beside two busy processes; 25 minutes
    python benchmarks/gate.py --same 200
    # 1.03x at 1 % on a quiet machine 40 times, 1.1x at 5 % beside busy processes 10; 8 minutes
    python benchmarks/gate.py --injected 40
    # what stands for a block: its fastest run, its lower quartile or its median, judged on the same
    # runs of 10 processes, 20 comparisons a case; 12 minutes
    python benchmarks/gate.py --statistics 20
    # networks of some 110 and 400 ms against themselves, and 1.1x, at 5 %; at most 16 minutes
    python benchmarks/gate.py --slow 2

Each comparison is `bench NEW --against OLD` with its defaults (2 minutes at most) on one thread, of
chains of equal convolutions (16 channels, 3×3, 32×32). The busy processes, one per core, compute
and sleep in turns of random length, 0.5 s on average. Results go to benchmarks/results/gate.json.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from common import Bench, Row, bench_of, parser
from edgecompress.export import onnx as onnx_export
from edgecompress.measure import bootstrap, machine, processes, regression
from edgecompress.measure.requests import TimingRequest

VERDICTS = ("pass", "inconclusive", "regression")
LAYERS, SMOKE_LAYERS = 33, 3
SLOWER = (("1.03x, quiet", 1, 0.01, False, 1), ("1.1x, busy", 3, 0.05, True, 4))
"""Name, layers more, tolerance, busy neighbours, and the part of the comparisons asked for."""
SLOW = (("110 ms", 33, 3), ("400 ms", 120, 12))
"""Name, layers, and layers that make it 1.1x slower."""
SMOKE_SLOW = tuple((name, SMOKE_LAYERS, 1) for name, _, _ in SLOW)
SLOW_SIDE, SMOKE_SIDE = 256, 32
STATISTICS = {"minimum": 0.0, "lower quartile": 0.25, "median": 0.5}
"""What may stand for a block: a quantile of its runs."""
STATISTICS_CASES = (
    ("the same, quiet", 0, 0.05, False),
    ("the same, busy", 0, 0.05, True),
    ("1.03x at 1 %, quiet", 1, 0.01, False),
    ("1.1x at 5 %, busy", 3, 0.05, True),
)
"""Name, layers more, tolerance, busy neighbours."""
STATISTICS_PROCESSES = 10
Blocks = NDArray[np.float64]
NEIGHBOUR = """
import random, sys, time
random.seed(int(sys.argv[1]))
while True:
    end = time.time() + random.random()
    while time.time() < end:
        pass
    time.sleep(random.random())
"""


@cache
def exported(layers: int, side: int) -> onnx.ModelProto:
    """A network of `layers` equal convolutions of images of `side` pixels."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Conv2d(16, 16, 3, padding=1) for _ in range(layers))).eval()
    return onnx_export.to_onnx(model, torch.zeros(1, 16, side, side))


def chain(layers: int, path: Path, side: int = 32) -> Path:
    """A file of `layers` equal convolutions: one layer more is one share more of time."""
    onnx_export.save(exported(layers, side), path)
    return path


@contextlib.contextmanager
def neighbours(wanted: bool) -> Iterator[None]:
    """As many busy processes as cores, inside the block, where they are wanted."""
    count = machine.cores() if wanted else 0
    running = [
        subprocess.Popen([sys.executable, "-c", NEIGHBOUR, str(seed)]) for seed in range(count)
    ]
    try:
        yield
    finally:
        for one in running:
            one.kill()
            one.wait()


def compared(bench: Bench, new: Path, old: Path, tolerance: float, seed: int) -> Row:
    """One comparison on one thread: its verdict and how long it took."""
    full = regression.Protocol(threads=1, seed=seed)
    quick = regression.Protocol(threads=1, seed=seed, processes=2, looks=(), blocks=5, block_ms=1.0)
    start = time.perf_counter()
    answer = regression.compare(new, old, tolerance, bench.size(full, quick))
    row = {key: answer[key] for key in ("ratio", "verdict", "processes", "time_over")}
    return {**row, "seconds": time.perf_counter() - start}


def counted(rows: list[Row]) -> Row:
    """Verdicts, and what stands behind them."""
    seconds = [row["seconds"] for row in rows]
    ratios = [row["ratio"]["median"] for row in rows]
    return {
        "comparisons": len(rows),
        **{verdict: sum(row["verdict"] == verdict for row in rows) for verdict in VERDICTS},
        "ended_by_time": sum(row["time_over"] for row in rows),
        "smallest_ratio": min(ratios),
        "largest_ratio": max(ratios),
        "seconds_median": statistics.median(seconds),
        "seconds_longest": max(seconds),
    }


def same(bench: Bench, count: int) -> None:
    """A file against a copy of itself: every `regression` is a false alarm."""
    rows: list[Row] = []
    layers = bench.size(LAYERS, SMOKE_LAYERS)
    with tempfile.TemporaryDirectory() as name:
        first, copy = (chain(layers, Path(name) / f"{part}.onnx") for part in ("one", "two"))
        for number in range(count):
            busy = number % 2 == 1
            with neighbours(busy):
                rows.append({"busy": busy, **compared(bench, first, copy, 0.05, number)})
            if number % 10 != 9 and number != count - 1:
                continue
            parts = {
                name: counted(part)
                for name, wanted in (("quiet", False), ("busy", True))
                if (part := [row for row in rows if row["busy"] is wanted])
            }
            described = {**bench.described("--same", count), "max_regression": 0.05}
            bench.store(same={**described, "summary": parts, "rows": rows})
            print(len(rows), json.dumps(parts), flush=True)


def injected(bench: Bench, count: int) -> None:
    """Slow-downs that are real: layers more."""
    parts: Row = {}
    layers = bench.size(LAYERS, SMOKE_LAYERS)
    with tempfile.TemporaryDirectory() as name:
        base = chain(layers, Path(name) / "base.onnx")
        for case, more, tolerance, busy, part in SLOWER:
            slower = chain(layers + more, Path(name) / f"{more}.onnx")
            rows: list[Row] = []
            for number in range(max(1, count // part)):
                with neighbours(busy):
                    rows.append(compared(bench, slower, base, tolerance, number))
                parts[case] = {
                    "layers": [layers + more, layers],
                    "max_regression": tolerance,
                    **counted(rows),
                    "rows": rows,
                }
                bench.store(injected={**bench.described("--injected", count), "cases": parts})
                print(case, rows[-1], flush=True)


def slow(bench: Bench, count: int) -> None:
    """Networks whose runs are long: the verdict comes within the time all the same."""
    parts: Row = {}
    side = bench.size(SLOW_SIDE, SMOKE_SIDE)
    with tempfile.TemporaryDirectory() as name:
        for case, layers, more in bench.size(SLOW, SMOKE_SLOW):
            files = [chain(layers, Path(name) / f"{part}.onnx", side) for part in ("one", "two")]
            slower = chain(layers + more, Path(name) / "slower.onnx", side)
            for what, new in (("the same", files[1]), ("1.1x", slower)):
                rows = [compared(bench, new, files[0], 0.05, seed) for seed in range(count)]
                parts[f"{case}, {what}"] = {"max_regression": 0.05, **counted(rows), "rows": rows}
                bench.store(slow={**bench.described("--slow", count), "cases": parts})
                print(case, what, json.dumps(counted(rows)), flush=True)


def runs_of_blocks(models: list[Path], seed: int, number: int, blocks: int) -> list[Blocks]:
    """Milliseconds of every run of each model, (blocks, runs), in a fresh process."""
    request = TimingRequest(
        models=tuple(map(str, models)),
        threads=1,
        provider="CPUExecutionProvider",
        batch_size=None,
        blocks=blocks,
        block_ms=processes.BLOCK_MS,
        seed=seed,
        swap=number % 2,
    )
    done = subprocess.run(
        processes.command_of("edgecompress.measure.worker"),
        input=json.dumps(asdict(request)),
        capture_output=True,
        text=True,
        check=True,
    )
    answer = json.loads(done.stdout)
    return [np.asarray(one).reshape(-1, answer["runs"]) for one in answer["samples_ms"]]


def judged(bench: Bench, models: list[Path], tolerance: float, seed: int) -> dict[str, Row]:
    """The verdict by each statistic, from the same runs."""
    measured = [
        runs_of_blocks(models, seed, number, bench.size(processes.BLOCKS, 5))
        for number in range(bench.size(STATISTICS_PROCESSES, 2))
    ]
    rows: dict[str, Row] = {}
    for name, share in STATISTICS.items():
        sides = [[np.quantile(side, share, axis=1) for side in both] for both in measured]
        ratio = bootstrap.interval([new / old for new, old in sides], seed)
        rows[name] = {
            "ratio": ratio.median,
            "ci95": ratio.bounds(),
            "verdict": bootstrap.verdict(ratio, tolerance),
        }
    return rows


def compared_statistics(bench: Bench, count: int) -> None:
    """What should stand for a block: alarms without a difference, and differences that are seen."""
    parts: Row = {}
    layers = bench.size(LAYERS, SMOKE_LAYERS)
    with tempfile.TemporaryDirectory() as name:
        base = chain(layers, Path(name) / "base.onnx")
        for case, more, tolerance, busy in STATISTICS_CASES:
            new = chain(layers + more, Path(name) / f"{more}-more.onnx")
            rows = []
            for seed in range(count):
                with neighbours(busy):
                    rows.append(judged(bench, [new, base], tolerance, seed))
            parts[case] = {
                statistic: {
                    verdict: sum(row[statistic]["verdict"] == verdict for row in rows)
                    for verdict in VERDICTS
                }
                for statistic in STATISTICS
            }
            described = {**bench.described("--statistics", count), "comparisons": count}
            processes_used = bench.size(STATISTICS_PROCESSES, 2)
            bench.store(statistics={**described, "processes": processes_used, "cases": parts})
            print(case, json.dumps(parts[case]), flush=True)


def main() -> None:
    """Run the parts that the options select."""
    options = parser(__doc__)
    options.add_argument("--injected", type=int, default=0)
    options.add_argument("--same", type=int, default=0)
    options.add_argument("--statistics", type=int, default=0)
    options.add_argument("--slow", type=int, default=0)
    arguments = options.parse_args()
    bench = bench_of(__file__, arguments)
    if arguments.injected:
        injected(bench, arguments.injected)
    if arguments.same:
        same(bench, arguments.same)
    if arguments.statistics:
        compared_statistics(bench, arguments.statistics)
    if arguments.slow:
        slow(bench, arguments.slow)


if __name__ == "__main__":
    main()
