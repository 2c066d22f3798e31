"""Measurements in fresh processes, since where a model lands in memory differs from process to
process.
"""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar, cast

import numpy as np

from edgecompress import files
from edgecompress.errors import EdgecompressError, EnvironmentMissingError, UsageError
from edgecompress.measure import machine, runtime
from edgecompress.measure.requests import (
    Failure,
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
TIME_S = 120.0
_RUN = (
    "import sys; sys.path[:] = [p for p in sys.path if p]; import runpy; "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__')"
)
"""Runs a module as `python -m` does, without the working folder among the places of modules: a
user's own `onnx.py` there must not be taken for the package.
"""
Answer = TypeVar("Answer")
_ERRORS: dict[int, type[EdgecompressError]] = {2: UsageError, 4: EnvironmentMissingError}


@dataclass(frozen=True)
class Protocol:
    """How to measure: at most `blocks` per process, whose runs of a model take about `block_ms`;
    `processes`, extended to each of `looks` while the result is inconclusive; in about `time_s`
    seconds. A slow model has fewer blocks per process, and in the end fewer processes.
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
    time_s: float = TIME_S

    def __post_init__(self) -> None:
        """Raises `UsageError` for what cannot be measured, before anything is."""
        least = {"processes": 2, "blocks": 1, "batch_size": 1, "threads": 1}
        for name, smallest in least.items():
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < smallest):
                raise UsageError(f"{name} {value!r}: give a whole number of at least {smallest}")
        for name in ("block_ms", "time_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"{name} {getattr(self, name)!r}: give a number above 0")

    @property
    def most(self) -> int:
        """Processes at the last look."""
        return max(self.processes, *self.looks, 1)

    @property
    def judged_after(self) -> set[int]:
        """Numbers of processes after which the result may be judged: none below `processes`."""
        return {self.processes, *(look for look in self.looks if look > self.processes)}

    @property
    def looks_at_most(self) -> int:
        """How often the result may be judged."""
        return len(self.judged_after)


@dataclass(frozen=True)
class Measured:
    """The timings of one or two models, in milliseconds: for each process an array `(blocks,
    models)` of the fastest runs, and for each model all single runs `(runs,)`.
    """

    blocks_ms: tuple[Array, ...]
    samples_ms: tuple[Array, ...]
    threads: int
    reference_ms: float
    input: str = ""
    batch: int = 1
    time_over: bool = False
    """Did the time end before the last look?"""

    def blocks_of(self, model: int) -> list[Array]:
        """The blocks of one model `(blocks,)` in milliseconds, by process."""
        return [blocks[:, model] for blocks in self.blocks_ms]

    def file_row(self, model: int, path: Path) -> FileRow:
        """The file of a model, its bytes and its percentiles, as in a result."""
        p50, p90, p99 = np.percentile(self.samples_ms[model], (50, 90, 99))
        return {
            "file": str(path),
            "bytes": runtime.file_bytes(path),
            "sha256": files.digest(path),
            "p50_ms": round(float(p50), 5),
            "p90_ms": round(float(p90), 5),
            "p99_ms": round(float(p99), 5),
        }


Stop = Callable[[Measured], bool]
"""Is what is measured so far enough? Called at each look but the last."""
Watch = Callable[[Measured, float], object]
"""Called after each process with what is measured so far, and the seconds that it took."""


def measure(models: Sequence[Path], protocol: Protocol, watch: Watch | None = None) -> Measured:
    """Time one or two models in `protocol.processes` fresh processes, fewer where the time ends.

    Raises the error that a process reports.
    """
    return measure_until(models, protocol, lambda _: True, watch)


def measure_until(
    models: Sequence[Path], protocol: Protocol, enough: Stop, watch: Watch | None = None
) -> Measured:
    """Time one or two models in one fresh process after the other, up to the look at which there is
    `enough`, or to the last one, or to the end of the time.

    Raises the error that a process reports.
    """
    start = time.perf_counter()
    answers: list[Timings] = []
    while True:
        answers.append(_timings(models, protocol, len(answers)))
        spent = time.perf_counter() - start
        count = len(answers)
        is_late = spent + spent / count > protocol.time_s
        measured = _measured(answers, len(models), time_over=is_late and count < protocol.most)
        if watch is not None:
            watch(measured, spent)
        if (
            is_late
            or count >= protocol.most
            or (count in protocol.judged_after and enough(measured))
        ):
            return measured


def _measured(answers: Sequence[Timings], models: int, *, time_over: bool) -> Measured:
    samples = [
        np.concatenate([answer["samples_ms"][place] for answer in answers])
        for place in range(models)
    ]
    return Measured(
        blocks_ms=tuple(np.asarray(answer["blocks_ms"]) for answer in answers),
        samples_ms=tuple(samples),
        threads=int(answers[0]["threads"]),
        reference_ms=float(np.median([answer["reference_ms"] for answer in answers])),
        input=str(answers[0]["input"]),
        batch=int(answers[0]["batch"]),
        time_over=time_over,
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
        limit_s=protocol.time_s / protocol.most,
    )
    return cast(Timings, _answer("edgecompress.measure.worker", request, models[0]))


def profile(
    model: Path, protocol: Protocol, batches: Sequence[int | None], time_s: float | None = None
) -> Profile:
    """Cold start, peak memory, latency by batch size, and the share of the machine's ceiling; see
    `measure.profile`. The batches take about `time_s` seconds together, by default at most one
    second each.
    """
    request = ProfileRequest(
        model=str(model),
        threads=protocol.threads,
        provider=protocol.provider,
        batches=tuple(batches),
        seed=protocol.seed,
        shapes=protocol.shapes,
        time_s=time_s,
    )
    return cast(Profile, _answer("edgecompress.measure.profile", request, model))


def command_of(module: str) -> list[str]:
    """The command that runs `module` in a process of its own."""
    return [sys.executable, "-c", _RUN, module]


def ended(model: Path, code: int, words: str) -> EdgecompressError:
    """The error that says how a child ended that worked on `model`: its exit code, negative for a
    signal, and what it wrote to stderr.
    """
    if code < 0:
        crash = signal.Signals(-code).name
        version = machine.versions().get("onnxruntime", "")
        return EdgecompressError(
            f"ONNX Runtime {version} crashes on '{model.name}' ({crash}), while it loads or runs it"
        )
    last = (words.strip().splitlines() or ["no message"])[-1]
    return EdgecompressError(f"measuring '{model}' ended with exit code {code}: {last}")


def checked(answer: Answer | Failure) -> Answer:
    """What a child answered. Raises the error that it reports instead."""
    if isinstance(answer, dict) and "error" in answer:
        raise _ERRORS.get(answer["exit_code"], EdgecompressError)(answer["error"])
    return answer


def _answer(module: str, request: TimingRequest | ProfileRequest, model: Path) -> object:
    """The answer of `python -m module`, a fresh process. Raises the error that it reports."""
    done = subprocess.run(
        command_of(module),
        input=json.dumps(asdict(request)),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ended(model, done.returncode, done.stderr)
    return checked(json.loads(done.stdout))
