"""One ONNX file in a process of its own: cold start, memory, latency by batch, and how close it is
to what the machine can do.

`python -m edgecompress.measure.profile` reads a `ProfileRequest` as JSON from stdin and prints a
`Profile`. The ceiling is the rate of large matrix products in the same runtime on the same threads,
in float32 and in int8.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import onnx

from edgecompress.errors import EdgecompressError
from edgecompress.measure import latency, machine, products, runtime
from edgecompress.measure.feeds import random_feeds
from edgecompress.measure.onnx_macs import macs
from edgecompress.measure.requests import BatchRow, Failure, Profile, ProfileRequest
from edgecompress.measure.runtime import Feeds, Runtime

SIDE = 768
"""Rows and columns of the matrix products that measure the ceiling."""
REPEATS = 15
BATCH_S = 1.0
"""Seconds of a batch size, where there is time."""
INT8 = ("DequantizeLinear", "QLinearConv", "ConvInteger", "QLinearMatMul", "QGemm", "MatMulInteger")


def ceiling(threads: int) -> dict[str, float]:
    """Giga multiply-accumulates per second of matrix products (SIDE, SIDE) in ONNX Runtime:
    `float32`, and `int8` (uint8 by int8).
    """
    generator = np.random.default_rng(0)
    floats = [generator.standard_normal((SIDE, SIDE), dtype=np.float32) for _ in range(2)]
    unsigned = generator.integers(0, 255, (SIDE, SIDE), dtype=np.uint8)
    signed = generator.integers(-127, 127, (SIDE, SIDE), dtype=np.int8)
    times = {
        "float32": products.seconds(floats[0], floats[1], threads, REPEATS),
        "int8": products.seconds(unsigned, signed, threads, REPEATS),
    }
    return {kind: SIDE**3 / min(taken) / 1e9 for kind, taken in times.items()}


def work(request: ProfileRequest) -> Profile:
    """Load the model, run it for the first time, then by batch size."""
    path = Path(request.model)
    empty = machine.own_peak_rss_bytes()
    start = time.perf_counter()
    loaded = runtime.load(path, threads=request.threads, provider=request.provider)
    load_s = time.perf_counter() - start
    generator = np.random.default_rng(request.seed)
    first_s = _first_run_s(loaded, random_feeds(loaded, None, generator, request.shapes))
    rows = [_batch_row(loaded, size, request) for size in request.batches]
    peak = machine.own_peak_rss_bytes()

    count = macs(path)
    rate = None if count is None else count * rows[0]["samples_per_s"] / 1e9
    # the ceiling of another device is not measured
    is_cpu = request.provider == "CPUExecutionProvider"
    ceilings = ceiling(loaded.threads) if is_cpu else None
    kind = _arithmetic(path)
    return {
        "load_ms": round(load_s * 1e3, 3),
        "first_run_ms": round(first_s * 1e3, 3),
        "cold_start_ms": round((load_s + first_s) * 1e3, 3),
        "peak_rss_bytes": peak,
        "rss_before_load_bytes": empty,
        "batches": rows,
        "macs": count,
        "gmacs_per_s": rate,
        "ceiling_gmacs_per_s": ceilings,
        "ceiling_kind": kind,
        "share_of_ceiling": None if rate is None or ceilings is None else rate / ceilings[kind],
        "threads": loaded.threads,
    }


def _first_run_s(loaded: Runtime, feeds: Feeds) -> float:
    start = time.perf_counter()
    loaded.execute(feeds)
    return time.perf_counter() - start


def _batch_row(loaded: Runtime, size: int | None, request: ProfileRequest) -> BatchRow:
    share_s = BATCH_S if request.time_s is None else request.time_s / len(request.batches)
    (taken,) = latency.measure(
        [loaded],
        batch_size=size,
        samples=100,
        least=latency.LEAST_SAMPLES if share_s >= BATCH_S else 1,
        limit_s=min(BATCH_S, share_s),
        seed=request.seed,
        shapes=request.shapes,
    )
    size = taken.batch
    percentiles = taken.summary()
    return {
        "batch": size,
        "p50_ms": percentiles["p50"],
        "p90_ms": percentiles["p90"],
        "p99_ms": percentiles["p99"],
        "samples_per_s": round(1e3 * size / taken.percentile(50), 2),
    }


def _arithmetic(path: Path) -> str:
    """`int8` if any operation of the file computes in int8, else `float32`."""
    nodes = onnx.load(str(path)).graph.node
    return "int8" if any(node.op_type in INT8 for node in nodes) else "float32"


def main() -> None:
    """One object in, one out; an error of ours becomes `{"error", "exit_code"}`."""
    answer: Profile | Failure
    try:
        answer = work(ProfileRequest(**json.loads(sys.stdin.read())))
    except EdgecompressError as error:
        answer = {"error": str(error), "exit_code": error.exit_code}
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main()
