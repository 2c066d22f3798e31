"""Time one or two ONNX files in this process: `python -m edgecompress.measure.worker`, the child of
`measure.regression`.

Reads one JSON object from stdin (`models`, `threads`, `provider`, `batch_size`, `blocks`, `seed`,
`swap`, `block_ms`) and prints one on stdout: for each model its single runs in milliseconds, and
the blocks. A block of two models is A B B A (or B A A B in turns), so that a drift of the machine
meets both alike; its numbers are the mean milliseconds of a run of each. The first runs after a
change of model are not counted: the other has emptied the caches, and of several threads some still
spin (`latency.settle`).
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from edgecompress.errors import EdgecompressError, UsageError
from edgecompress.measure import latency, products, runtime
from edgecompress.measure.runtime import Array, Runtime


def timed_runs(loaded: Runtime, batch: Array, count: int) -> list[float]:
    """Milliseconds of `count` single runs."""
    taken = []
    for _ in range(count):
        start = time.perf_counter_ns()
        loaded.run(batch)
        taken.append((time.perf_counter_ns() - start) / 1e6)
    return taken


def checked(loaded: Runtime, batch: Array) -> None:
    """Raises `UsageError` when the model's outputs for `batch` are not numbers."""
    if not np.isfinite(loaded.run(batch)).all():
        raise UsageError(
            f"'{loaded.path}' gives NaN or infinite outputs: its latency says nothing; "
            "export it again"
        )


def work(asked: dict[str, Any]) -> dict[str, Any]:
    """Load, warm up, and time what `asked` says."""
    paths = [Path(path) for path in asked["models"]]
    order = list(range(len(paths)))
    if asked["swap"]:
        order.reverse()
    loaded: list[Any] = [None] * len(paths)
    for place in (
        order
    ):  # which is loaded first changes from process to process, as its place in memory does
        loaded[place] = runtime.load(
            paths[place], threads=asked["threads"], provider=asked["provider"]
        )
    shapes = {f"{'uint8 ' if model.reads_pixels else ''}{model.input_shape}" for model in loaded}
    if len(shapes) > 1:
        raise UsageError(
            f"the models read different inputs ({' and '.join(sorted(shapes))}): compare "
            "models of one input"
        )
    batch = loaded[0].random_batch(asked["batch_size"], np.random.default_rng(asked["seed"]))
    runs = []
    for model in loaded:
        checked(model, batch)
        latency.warm_up(model, batch)
        runs.append(
            max(
                1,
                round(asked["block_ms"] / max(1e-3, float(np.median(timed_runs(model, batch, 5))))),
            )
        )
    count, samples, blocks, last = min(runs), [list[float]() for _ in loaded], [], -1
    for number in range(asked["blocks"]):
        sides = list(range(len(loaded)))
        if (number + asked["swap"]) % 2:
            sides.reverse()
        sums = [0.0] * len(loaded)
        for side in (*sides, *reversed(sides)):
            if side != last:
                latency.settle(loaded[side], batch)
            last = side
            taken = timed_runs(loaded[side], batch, count)
            samples[side] += taken
            sums[side] += sum(taken) / (2 * count)
        blocks.append(sums)
    time.sleep(latency.SPIN_MS / 1e3)
    reference = products.reference_ms(loaded[0].threads)
    return {
        "samples_ms": samples,
        "blocks_ms": blocks,
        "runs": count,
        "threads": loaded[0].threads,
        "reference_ms": reference,
        "input": shapes.pop(),
    }


def main() -> None:
    """One object in, one out; an error of ours becomes `{"error", "exit_code"}`."""
    try:
        answer = work(json.loads(sys.stdin.read()))
    except EdgecompressError as error:
        answer = {"error": str(error), "exit_code": error.exit_code}
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main()
