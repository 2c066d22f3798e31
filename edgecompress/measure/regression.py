"""Is one ONNX file slower than another? Measured so that a busy machine does not cry wolf.

Both files are timed in turns (A B B A) within one process, and that in several fresh processes,
since where a model lands in memory differs from process to process. The ratio candidate / baseline
of each block is taken; the 95 % interval of their median comes from a bootstrap over processes and,
within them, over blocks, widened by sqrt(P / (P - 1)) for P processes.

    regression    the whole interval lies above 1 + tolerance
    pass          the whole interval lies at or below 1 + tolerance
    inconclusive  neither, after the last extension

The rule for extending is fixed beforehand: `PROCESSES` processes first, then up to each of `LOOKS`
while the result is inconclusive.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgecompress.errors import EdgecompressError, EnvironmentMissingError, UsageError
from edgecompress.measure import machine, runtime
from edgecompress.measure.runtime import Array

PROCESSES = 5
LOOKS = (10, 20)
BLOCKS = 30
BLOCK_MS = 4.0
RESAMPLES = 4000
KINDS: dict[int, type[EdgecompressError]] = {2: UsageError, 4: EnvironmentMissingError}


@dataclass(frozen=True)
class Protocol:
    """How to measure: runs of a side in a block last about `block_ms`; `blocks` a process;
    `processes`, extended as `looks` say.
    """

    threads: int | None = None
    batch_size: int = 1
    provider: str = "CPUExecutionProvider"
    processes: int = PROCESSES
    looks: tuple[int, ...] = LOOKS
    blocks: int = BLOCKS
    block_ms: float = BLOCK_MS
    seed: int = 0


@dataclass(frozen=True)
class Interval:
    """A median with its 95 % interval."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Measured:
    """What processes measured of one or two models: for each process (blocks, models) milliseconds,
    and all single runs by model.
    """

    blocks_ms: tuple[Array, ...]
    samples_ms: tuple[Array, ...]
    threads: int
    reference_ms: float
    input: str = ""

    def percentiles(self, side: int) -> dict[str, float]:
        """`{"p50_ms", "p90_ms", "p99_ms"}` of single runs of one model."""
        return {
            f"p{q}_ms": round(float(np.percentile(self.samples_ms[side], q)), 5)
            for q in (50, 90, 99)
        }


def measure(models: Sequence[Path], protocol: Protocol, processes: int, first: int = 0) -> Measured:
    """Time one or two models in `processes` fresh processes, numbered from `first`. Raises what the
    child says is wrong.
    """
    answers = [_child(models, protocol, number) for number in range(first, first + processes)]
    samples = [
        np.concatenate([answer["samples_ms"][side] for answer in answers])
        for side in range(len(models))
    ]
    blocks = tuple(np.asarray(answer["blocks_ms"]) for answer in answers)
    reference = float(np.median([answer["reference_ms"] for answer in answers]))
    return Measured(
        blocks, tuple(samples), int(answers[0]["threads"]), reference, str(answers[0]["input"])
    )


def _child(models: Sequence[Path], protocol: Protocol, number: int) -> dict[str, Any]:
    asked = {
        "models": [str(path) for path in models],
        "threads": protocol.threads,
        "provider": protocol.provider,
        "batch_size": protocol.batch_size,
        "blocks": protocol.blocks,
        "block_ms": protocol.block_ms,
        "seed": protocol.seed,
        "swap": number % 2,
    }
    return _asked("edgecompress.measure.worker", asked, models[0])


def _asked(module: str, asked: dict[str, Any], model: Path) -> dict[str, Any]:
    """What `python -m module`, a fresh process, answers. Raises what it says is wrong."""
    done = subprocess.run(
        [sys.executable, "-m", module],
        input=json.dumps(asked),
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
        raise KINDS.get(answer["exit_code"], EdgecompressError)(answer["error"])
    return answer


def profile(model: Path, protocol: Protocol, batches: Sequence[int]) -> dict[str, Any]:
    """Cold start, peak memory, latency by batch size, and the share of the machine's ceiling: see
    `measure.profile`.
    """
    asked = {
        "model": str(model),
        "threads": protocol.threads,
        "provider": protocol.provider,
        "batches": list(batches),
        "seed": protocol.seed,
    }
    return _asked("edgecompress.measure.profile", asked, model)


def merged(first: Measured, second: Measured) -> Measured:
    """Both measurements as one of more processes."""
    samples = tuple(
        np.concatenate(pair) for pair in zip(first.samples_ms, second.samples_ms, strict=True)
    )
    reference = (first.reference_ms + second.reference_ms) / 2
    return Measured(
        first.blocks_ms + second.blocks_ms, samples, first.threads, reference, first.input
    )


def resampled_medians(groups: Sequence[Array], seed: int, count: int = RESAMPLES) -> Array:
    """Medians (count,) of values resampled over groups (processes), then within them."""
    generator = np.random.default_rng(seed)
    size = min(len(group) for group in groups)
    table = np.stack(
        [np.asarray(group[:size], dtype=np.float64) for group in groups]
    )  # (P, blocks)
    chosen = generator.integers(0, len(groups), (count, len(groups)))
    within = generator.integers(0, size, (count, len(groups), size))
    medians: Array = np.median(table[chosen[:, :, None], within].reshape(count, -1), axis=1)
    return medians


def interval(groups: Sequence[Array], seed: int = 0) -> Interval:
    """The median of all values and its interval, from values by process."""
    median = float(np.median(np.concatenate(list(groups))))
    low, high = np.percentile(resampled_medians(groups, seed), (2.5, 97.5))
    widen = math.sqrt(len(groups) / (len(groups) - 1)) if len(groups) > 1 else float("inf")
    return Interval(
        median, median - widen * (median - float(low)), median + widen * (float(high) - median)
    )


def verdict(ratio: Interval, tolerance: float) -> str:
    """`pass`, `regression` or `inconclusive` for a ratio candidate / baseline and a tolerance
    (0.05: 5 % slower is allowed).
    """
    if ratio.low > 1 + tolerance:
        return "regression"
    return "pass" if ratio.high <= 1 + tolerance else "inconclusive"


def blocks_needed(ratio: Interval, tolerance: float, blocks: int) -> int | None:
    """Blocks that would settle an inconclusive result if its median stays: the interval shrinks
    with their root. None: no number would.
    """
    distance = abs(ratio.median - (1 + tolerance))
    half = max(ratio.high - ratio.median, ratio.median - ratio.low)
    return (
        math.ceil(blocks * (half / distance) ** 2)
        if distance > 1e-4 and math.isfinite(half)
        else None
    )


def compare(
    candidate: Path, baseline: Path, tolerance: float, protocol: Protocol | None = None
) -> dict[str, Any]:
    """Measure both files together, extend while inconclusive, and judge. Keys as in the contract,
    and how it was measured.
    """
    protocol = protocol or Protocol()
    found = measure([candidate, baseline], protocol, protocol.processes)
    for look in (None, *protocol.looks):
        if look is not None and look <= len(found.blocks_ms):
            continue
        if look is not None:
            found = merged(
                found,
                measure(
                    [candidate, baseline],
                    protocol,
                    look - len(found.blocks_ms),
                    len(found.blocks_ms),
                ),
            )
        ratios = [blocks[:, 0] / blocks[:, 1] for blocks in found.blocks_ms]
        ratio = interval(ratios, protocol.seed)
        said = verdict(ratio, tolerance)
        if said != "inconclusive":
            break
    return {
        "candidate": {
            "file": str(candidate),
            "bytes": runtime.file_bytes(candidate),
            **found.percentiles(0),
        },
        "baseline": {
            "file": str(baseline),
            "bytes": runtime.file_bytes(baseline),
            **found.percentiles(1),
        },
        "blocks_ms": {
            side: [blocks[:, n].tolist() for blocks in found.blocks_ms]
            for n, side in enumerate(("candidate", "baseline"))
        },
        **judged(ratio, said, tolerance, found, protocol),
    }


def judged(
    ratio: Interval, said: str, tolerance: float, found: Measured, protocol: Protocol
) -> dict[str, Any]:
    """The parts of a result that every comparison has."""
    blocks = sum(len(b) for b in found.blocks_ms)
    return {
        "ratio": {"median": ratio.median, "ci95": [ratio.low, ratio.high]},
        "verdict": said,
        "max_regression": tolerance,
        "blocks_needed": blocks_needed(ratio, tolerance, blocks)
        if said == "inconclusive"
        else None,
        "processes": len(found.blocks_ms),
        "blocks": blocks,
        "batch": protocol.batch_size,
        "threads": found.threads,
        "provider": protocol.provider,
        "input": found.input,
        "reference_ms": found.reference_ms,
        "hardware": machine.hardware(),
        "versions": machine.versions(),
    }


def stored(model: Path, protocol: Protocol) -> dict[str, Any]:
    """What a baseline file holds of `model`: percentiles and the blocks of every process, with the
    machine and its reference workload.
    """
    found = measure([model], protocol, protocol.processes)
    return {
        "schema": 1,
        "candidate": {
            "file": str(model),
            "bytes": runtime.file_bytes(model),
            **found.percentiles(0),
        },
        "blocks_ms": [blocks[:, 0].tolist() for blocks in found.blocks_ms],
        "batch": protocol.batch_size,
        "threads": found.threads,
        "provider": protocol.provider,
        "input": found.input,
        "reference_ms": found.reference_ms,
        "hardware": machine.hardware(),
        "versions": machine.versions(),
    }


def read_stored(path: Path) -> dict[str, Any]:
    """A baseline that `stored` made. Raises `UsageError` for anything else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"baseline '{path}' cannot be read: {error}; make one with edgecompress bench "
            f"MODEL --json > {path}"
        ) from error
    blocks = found.get("blocks_ms") if isinstance(found, dict) else None
    if (
        not isinstance(blocks, list)
        or not all(isinstance(group, list) and group for group in blocks)
        or len(blocks) < 2
    ):
        raise UsageError(
            f"baseline '{path}' holds no measurements: make one with edgecompress bench "
            f"MODEL --json > {path}"
        )
    numbers = [value for group in blocks for value in group] + [found.get("reference_ms", 1.0)]
    if not all(
        isinstance(value, float | int) and not isinstance(value, bool) and 0 < value < math.inf
        for value in numbers
    ):
        raise UsageError(
            f"baseline '{path}' holds times that are no milliseconds above 0: make it anew "
            "with edgecompress bench MODEL --json"
        )
    if (
        found.get("schema") != 1
        or not isinstance(found.get("candidate"), dict)
        or not isinstance(found.get("hardware"), dict)
    ):
        raise UsageError(
            f"baseline '{path}' is none of this version: make it anew with edgecompress "
            f"bench MODEL --json > {path}"
        )
    missing = [
        key
        for key in (
            "candidate",
            "batch",
            "threads",
            "provider",
            "input",
            "reference_ms",
            "hardware",
        )
        if key not in found
    ]
    if missing:
        raise UsageError(
            f"baseline '{path}' does not say its {missing[0]}: make it anew with "
            f"edgecompress bench MODEL --json > {path}"
        )
    return dict(found)


def compare_stored(
    model: Path,
    baseline: dict[str, Any],
    tolerance: float,
    protocol: Protocol,
    *,
    cross_machine: bool,
) -> dict[str, Any]:
    """Measure `model` now and hold it against a stored baseline.

    Raises `UsageError` when that was measured on other hardware, threads or batches, unless
    `cross_machine`: then both are divided by the time of the reference workload on their machine,
    and the result is marked `normalised`.
    """
    now, then = machine.hardware(), baseline["hardware"]
    same = all(now.get(key) == then.get(key) for key in ("cpu", "cores", "machine", "instructions"))
    if not same and not cross_machine:
        there, here = (
            f"{of.get('cpu')} with {of.get('cores')} core(s) and {of.get('instructions')}"
            for of in (then, now)
        )
        raise UsageError(
            f"baseline was measured on {there}, this is {here}: measure it here, or pass "
            "--cross-machine for a rough, normalised comparison"
        )
    found = measure([model], protocol, protocol.processes)
    if (baseline["input"], baseline["provider"]) != (found.input, protocol.provider):
        raise UsageError(
            f"baseline was measured on inputs {baseline['input']} by {baseline['provider']}, "
            f"this is {found.input} by {protocol.provider}: "
            "compare models of one input on one provider"
        )
    if baseline.get("batch") != protocol.batch_size or baseline.get("threads") != found.threads:
        raise UsageError(
            f"baseline was measured with batch {baseline.get('batch')} and "
            f"{baseline.get('threads')} thread(s), this is batch "
            f"{protocol.batch_size} with {found.threads}: pass the same --batch-size and --threads"
        )
    scale = baseline["reference_ms"] / found.reference_ms if not same else 1.0
    mine = [blocks[:, 0] for blocks in found.blocks_ms]
    theirs = [np.asarray(group, dtype=np.float64) for group in baseline["blocks_ms"]]
    ratio = _ratio_of_medians(mine, theirs, scale, protocol.seed)
    return {
        "candidate": {
            "file": str(model),
            "bytes": runtime.file_bytes(model),
            **found.percentiles(0),
        },
        "baseline": baseline["candidate"],
        **judged(ratio, verdict(ratio, tolerance), tolerance, found, protocol),
        "normalised": not same,
    }


def _ratio_of_medians(
    mine: Sequence[Array], theirs: Sequence[Array], scale: float, seed: int
) -> Interval:
    """The ratio of two medians that were measured apart, each resampled by itself."""
    median = scale * float(
        np.median(np.concatenate(list(mine))) / np.median(np.concatenate(list(theirs)))
    )
    resampled = scale * resampled_medians(mine, seed) / resampled_medians(theirs, seed + 1)
    low, high = (float(value) for value in np.percentile(resampled, (2.5, 97.5)))
    groups = min(len(mine), len(theirs))
    widen = math.sqrt(groups / (groups - 1)) if groups > 1 else float("inf")
    return Interval(median, median - widen * (median - low), median + widen * (high - median))
