"""Measurements in fresh processes, since where a model lands in memory differs from process to
process.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from edgecompress.errors import EdgecompressError, EnvironmentMissingError, UsageError
from edgecompress.measure import runtime
from edgecompress.measure.requests import (
    FileRow,
    Profile,
    ProfileRequest,
    TimingRequest,
    Timings,
)
from edgecompress.measure.runtime import Array

PROCESSES = 5
LOOKS = (10, 20)
BLOCKS = 30
BLOCK_MS = 4.0
_RUN = (
    "import sys; sys.path[:] = [p for p in sys.path if p]; import runpy; "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__')"
)
"""Runs a module as `python -m` does, without the working folder among the places of modules: a
user's own `onnx.py` there must not be taken for the package.
"""
_ERRORS: dict[int, type[EdgecompressError]] = {2: UsageError, 4: EnvironmentMissingError}


@dataclass(frozen=True)
class Protocol:
    """How to measure: `blocks` per process, whose runs of a model take about `block_ms`;
    `processes`, extended to each of `looks` while the result is inconclusive.
    """

    threads: int | None = None
    batch_size: int | None = None
    provider: str = "CPUExecutionProvider"
    processes: int = PROCESSES
    looks: tuple[int, ...] = LOOKS
    blocks: int = BLOCKS
    block_ms: float = BLOCK_MS
    seed: int = 0
    shapes: dict[str, list[int]] | None = None


@dataclass(frozen=True)
class Measured:
    """The timings of one or two models, in milliseconds: for each process an array `(blocks,
    models)`, and for each model all single runs `(runs,)`.
    """

    blocks_ms: tuple[Array, ...]
    samples_ms: tuple[Array, ...]
    threads: int
    reference_ms: float
    input: str = ""
    batch: int = 1

    def blocks_of(self, model: int) -> list[Array]:
        """The blocks of one model `(blocks,)`, by process."""
        return [blocks[:, model] for blocks in self.blocks_ms]

    def file_row(self, model: int, path: Path) -> FileRow:
        """The file of a model, its bytes and its percentiles, as in a result."""
        p50, p90, p99 = np.percentile(self.samples_ms[model], (50, 90, 99))
        return {
            "file": str(path),
            "bytes": runtime.file_bytes(path),
            "p50_ms": round(float(p50), 5),
            "p90_ms": round(float(p90), 5),
            "p99_ms": round(float(p99), 5),
        }


def measure(models: Sequence[Path], protocol: Protocol, processes: int, first: int = 0) -> Measured:
    """Time one or two models in `processes` fresh processes, numbered from `first`.

    Raises the error that a process reports.
    """
    answers = [_timings(models, protocol, number) for number in range(first, first + processes)]
    samples = [
        np.concatenate([answer["samples_ms"][place] for answer in answers])
        for place in range(len(models))
    ]
    return Measured(
        blocks_ms=tuple(np.asarray(answer["blocks_ms"]) for answer in answers),
        samples_ms=tuple(samples),
        threads=int(answers[0]["threads"]),
        reference_ms=float(np.median([answer["reference_ms"] for answer in answers])),
        input=str(answers[0]["input"]),
        batch=int(answers[0]["batch"]),
    )


def _timings(models: Sequence[Path], protocol: Protocol, number: int) -> Timings:
    request = TimingRequest(
        models=tuple(str(path) for path in models),
        threads=protocol.threads,
        provider=protocol.provider,
        batch_size=protocol.batch_size,
        blocks=protocol.blocks,
        block_ms=protocol.block_ms,
        seed=protocol.seed,
        swap=number % 2,
        shapes=protocol.shapes,
    )
    return cast(Timings, _answer("edgecompress.measure.worker", request, models[0]))


def profile(model: Path, protocol: Protocol, batches: Sequence[int | None]) -> Profile:
    """Cold start, peak memory, latency by batch size, and the share of the machine's ceiling; see
    `measure.profile`.
    """
    request = ProfileRequest(
        model=str(model),
        threads=protocol.threads,
        provider=protocol.provider,
        batches=tuple(batches),
        seed=protocol.seed,
        shapes=protocol.shapes,
    )
    return cast(Profile, _answer("edgecompress.measure.profile", request, model))


def _answer(module: str, request: TimingRequest | ProfileRequest, model: Path) -> object:
    """The answer of `python -m module`, a fresh process. Raises the error that it reports."""
    done = subprocess.run(
        [sys.executable, "-c", _RUN, module],
        input=json.dumps(asdict(request)),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise EdgecompressError(
            f"measuring '{model}' ended with exit code {done.returncode}: {last}"
        )
    answer: dict[str, Any] = json.loads(done.stdout)
    if "error" in answer:
        raise _ERRORS.get(answer["exit_code"], EdgecompressError)(answer["error"])
    return answer


def merged(first: Measured, second: Measured) -> Measured:
    """Two measurements of the same models as one."""
    samples = tuple(
        np.concatenate(pair) for pair in zip(first.samples_ms, second.samples_ms, strict=True)
    )
    return Measured(
        blocks_ms=first.blocks_ms + second.blocks_ms,
        samples_ms=samples,
        threads=first.threads,
        reference_ms=(first.reference_ms + second.reference_ms) / 2,
        input=first.input,
        batch=first.batch,
    )
