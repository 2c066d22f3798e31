"""Two files, measured together and judged."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

from edgecompress.measure import machine
from edgecompress.measure.bootstrap import Interval, blocks_needed, interval, verdict
from edgecompress.measure.processes import Measured, Protocol, measure, merged
from edgecompress.measure.requests import Conditions, FileRow


class Ratio(TypedDict):
    """Candidate / baseline: the median, and its 95 % interval as [low, high]."""

    median: float
    ci95: list[float]


class Judgement(Conditions):
    """The verdict on a ratio, and the conditions of the measurement.

    `max_regression` is the share by which the candidate may be slower; `blocks_needed` is None
    unless the verdict is inconclusive.
    """

    ratio: Ratio
    verdict: str
    max_regression: float
    blocks_needed: int | None
    processes: int
    blocks: int


class PairedBlocks(TypedDict):
    """Milliseconds of a run in each block, by process and block."""

    candidate: list[list[float]]
    baseline: list[list[float]]


class Judged(Judgement):
    """A candidate, judged against a baseline."""

    candidate: FileRow
    baseline: FileRow


class Comparison(Judged):
    """Two files that were measured together."""

    blocks_ms: PairedBlocks


def compare(
    candidate: Path, baseline: Path, tolerance: float, protocol: Protocol | None = None
) -> Comparison:
    """Measure both files together, extend while inconclusive, and judge.

    Returns the result of `edgecompress bench --against`, with the conditions of the measurement.
    `tolerance` is the share by which the candidate may be slower (0.05: 5 %).
    """
    protocol = protocol or Protocol()
    models = [candidate, baseline]
    measured = measure(models, protocol, protocol.processes)
    ratio = _ratio(measured, protocol)
    for look in protocol.looks:
        processes = len(measured.blocks_ms)
        if verdict(ratio, tolerance) != "inconclusive":
            break
        if look > processes:
            more = measure(models, protocol, look - processes, processes)
            measured = merged(measured, more)
            ratio = _ratio(measured, protocol)
    return {
        "candidate": measured.file_row(0, candidate),
        "baseline": measured.file_row(1, baseline),
        "blocks_ms": {
            "candidate": [blocks.tolist() for blocks in measured.blocks_of(0)],
            "baseline": [blocks.tolist() for blocks in measured.blocks_of(1)],
        },
        **judged(ratio, tolerance, measured, protocol),
    }


def _ratio(measured: Measured, protocol: Protocol) -> Interval:
    """Candidate / baseline, block by block."""
    return interval([blocks[:, 0] / blocks[:, 1] for blocks in measured.blocks_ms], protocol.seed)


def judged(ratio: Interval, tolerance: float, measured: Measured, protocol: Protocol) -> Judgement:
    """The verdict on a ratio, and the conditions of the measurement."""
    blocks = sum(len(process) for process in measured.blocks_ms)
    outcome = verdict(ratio, tolerance)
    is_open = outcome == "inconclusive"
    return {
        "ratio": {"median": ratio.median, "ci95": [ratio.low, ratio.high]},
        "verdict": outcome,
        "max_regression": tolerance,
        "blocks_needed": blocks_needed(ratio, tolerance, blocks) if is_open else None,
        "processes": len(measured.blocks_ms),
        "blocks": blocks,
        **conditions(measured, protocol),
    }


def conditions(measured: Measured, protocol: Protocol) -> Conditions:
    """The conditions of a measurement: batch, threads, provider, input, machine, versions."""
    return {
        "batch": measured.batch,
        "threads": measured.threads,
        "provider": protocol.provider,
        "input": measured.input,
        "reference_ms": measured.reference_ms,
        "hardware": machine.hardware(),
        "versions": machine.versions(),
    }
