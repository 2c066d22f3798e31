"""Time one or two ONNX files in this process: `python -m edgecompress.measure.worker`, the child of
`measure.processes`.

Reads a `TimingRequest` as JSON from stdin and prints `Timings`. A block of two models is A B B A
(or B A A B in turns), so that a drift of the machine affects both alike; its numbers are the
milliseconds of the fastest run of each: what else runs on the machine only ever adds to a run, so
a mean says more of the neighbours than of the model. The first runs after a change of model are
not counted: the other model has emptied the caches, and of several threads some still spin
(`latency.settle`).
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgecompress.errors import EdgecompressError, UsageError
from edgecompress.measure import latency, products, runtime
from edgecompress.measure.feeds import random_feeds
from edgecompress.measure.requests import Failure, TimingRequest, Timings
from edgecompress.measure.runtime import Feeds, Runtime, is_finite

LEAST_BLOCKS = 5
"""Blocks that a process times, however long they take."""


def timed_runs(loaded: Runtime, feeds: Feeds, count: int) -> list[float]:
    """Milliseconds of `count` single runs on `feeds`."""
    return [latency.timed(loaded, feeds) for _ in range(count)]


@dataclass(frozen=True)
class _Side:
    """A model and its inputs."""

    loaded: Runtime
    feeds: Feeds


def work(request: TimingRequest) -> Timings:
    """Load the models, warm them up, and time them."""
    start = time.perf_counter()
    models = _load(request)
    described = {model.described() for model in models}
    if len(described) > 1:
        raise UsageError(
            f"the models read different inputs ({' and '.join(sorted(described))}): compare "
            "models of one input"
        )
    batch = request.batch_size or models[0].batch
    sides = [_Side(model, _feeds(model, batch, request)) for model in models]
    count = min(_runs_per_block(side, request.block_ms) for side in sides)
    samples, blocks = _time_blocks(sides, count, request, start + request.limit_s)
    # threads of the last model still spin
    time.sleep(latency.SPIN_MS / 1e3)
    return {
        "samples_ms": samples,
        "blocks_ms": blocks,
        "runs": count,
        "threads": models[0].threads,
        "reference_ms": products.reference_ms(models[0].threads),
        "input": described.pop(),
        "batch": batch or 1,
    }


def _feeds(model: Runtime, batch: int | None, request: TimingRequest) -> Feeds:
    """The same values for each model: their magnitudes where a network, as one that takes a root,
    is not defined for negative ones. Raises `UsageError` for outputs that are not finite.
    """
    generator = np.random.default_rng(request.seed)
    feeds = random_feeds(model, batch, generator, request.shapes)
    if not all(is_finite(output) for output in model.execute(feeds)):
        floats = (value.dtype.kind == "f" for value in feeds.values())
        feeds = {
            name: np.asarray(np.abs(value)) if real else value
            for (name, value), real in zip(feeds.items(), floats, strict=True)
        }
        model.check_finite(feeds)
    return feeds


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


def _runs_per_block(side: _Side, block_ms: float) -> int:
    """Runs that take about `block_ms`, after a warm-up."""
    latency.warm_up(side.loaded, side.feeds)
    run_ms = float(np.median(timed_runs(side.loaded, side.feeds, 5)))
    return max(1, round(block_ms / max(1e-3, run_ms)))


def _time_blocks(
    models: Sequence[_Side], count: int, request: TimingRequest, end: float
) -> tuple[list[list[float]], list[list[float]]]:
    """Milliseconds: of single runs by model, and of the fastest run by block and model.

    No block begins after the time `end`, but `LEAST_BLOCKS` are timed in any case.
    """
    samples = [list[float]() for _ in models]
    blocks = []
    last = None
    for number in range(request.blocks):
        if number >= LEAST_BLOCKS and time.perf_counter() > end:
            break
        sides = list(range(len(models)))
        if (number + request.swap) % 2:
            sides.reverse()
        fastest = [math.inf] * len(models)
        for side in (*sides, *reversed(sides)):
            if side != last:
                latency.settle(models[side].loaded, models[side].feeds)
            last = side
            taken = timed_runs(models[side].loaded, models[side].feeds, count)
            samples[side] += taken
            fastest[side] = min(fastest[side], *taken)
        blocks.append(fastest)
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
