"""Time one or two ONNX files in this process: `python -m edgecompress.measure.worker`, the child of
`measure.processes`.

Reads a `TimingRequest` as JSON from stdin and prints `Timings`. A block of two models is A B B A
(or B A A B in turns), so that a drift of the machine affects both alike; its numbers are the mean
milliseconds of a run of each. The first runs after a change of model are not counted: the other
model has emptied the caches, and of several threads some still spin (`latency.settle`).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgecompress.errors import EdgecompressError, UsageError
from edgecompress.measure import latency, products, runtime
from edgecompress.measure.requests import Failure, TimingRequest, Timings
from edgecompress.measure.runtime import Array, Runtime


def timed_runs(loaded: Runtime, batch: Array, count: int) -> list[float]:
    """Milliseconds of `count` single runs on `batch` `(N, C, H, W)`."""
    return [latency.timed(loaded, batch) for _ in range(count)]


def check_outputs(loaded: Runtime, batch: Array) -> None:
    """Raises `UsageError` when the model's outputs for `batch` `(N, C, H, W)` are not finite."""
    if not np.isfinite(loaded.run(batch)).all():
        raise UsageError(
            f"'{loaded.path}' gives NaN or infinite outputs: its latency means nothing; "
            "export it again"
        )


def work(request: TimingRequest) -> Timings:
    """Load the models, warm them up, and time them."""
    models = _load(request)
    shapes = {f"{'uint8 ' if model.reads_pixels else ''}{model.input_shape}" for model in models}
    if len(shapes) > 1:
        raise UsageError(
            f"the models read different inputs ({' and '.join(sorted(shapes))}): compare "
            "models of one input"
        )
    batch = models[0].random_batch(request.batch_size, np.random.default_rng(request.seed))
    count = min(_runs_per_block(model, batch, request.block_ms) for model in models)
    samples, blocks = _time_blocks(models, batch, count, request)
    # threads of the last model still spin
    time.sleep(latency.SPIN_MS / 1e3)
    return {
        "samples_ms": samples,
        "blocks_ms": blocks,
        "runs": count,
        "threads": models[0].threads,
        "reference_ms": products.reference_ms(models[0].threads),
        "input": shapes.pop(),
    }


def _load(request: TimingRequest) -> list[Runtime]:
    """The models; which is loaded first changes from process to process, as its place in memory
    does.
    """
    order = range(len(request.models))
    loaded = {
        place: runtime.load(
            Path(request.models[place]), threads=request.threads, provider=request.provider
        )
        for place in (reversed(order) if request.swap else order)
    }
    return [loaded[place] for place in order]


def _runs_per_block(model: Runtime, batch: Array, block_ms: float) -> int:
    """Runs that take about `block_ms`, after a warm-up."""
    check_outputs(model, batch)
    latency.warm_up(model, batch)
    run_ms = float(np.median(timed_runs(model, batch, 5)))
    return max(1, round(block_ms / max(1e-3, run_ms)))


def _time_blocks(
    models: Sequence[Runtime], batch: Array, count: int, request: TimingRequest
) -> tuple[list[list[float]], list[list[float]]]:
    """Milliseconds: of single runs by model, and of a run by block and model."""
    samples = [list[float]() for _ in models]
    blocks = []
    last = None
    for number in range(request.blocks):
        sides = list(range(len(models)))
        if (number + request.swap) % 2:
            sides.reverse()
        means = [0.0] * len(models)
        for side in (*sides, *reversed(sides)):
            if side != last:
                latency.settle(models[side], batch)
            last = side
            taken = timed_runs(models[side], batch, count)
            samples[side] += taken
            means[side] += sum(taken) / (2 * count)
        blocks.append(means)
    return samples, blocks


def main() -> None:
    """One object in, one out; an error of ours becomes `{"error", "exit_code"}`."""
    answer: Timings | Failure
    try:
        answer = work(TimingRequest(**json.loads(sys.stdin.read())))
    except EdgecompressError as error:
        answer = {"error": str(error), "exit_code": error.exit_code}
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main()
