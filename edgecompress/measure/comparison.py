"""Two files, measured together and judged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from typing_extensions import TypedDict

from edgecompress.errors import UsageError
from edgecompress.measure import machine
from edgecompress.measure.bootstrap import Interval, blocks_needed, interval, verdict
from edgecompress.measure.processes import Measured, Protocol, measure_until
from edgecompress.measure.requests import Conditions, FileRow


class Ratio(TypedDict):
    """Candidate / baseline: the median, and its interval [low, high], which is right with 95 % at
    all looks together.
    """

    median: float
    ci95: list[float | None]
    """None where it is unbounded: one process says nothing of the next."""


class Judgement(Conditions):
    """The verdict on a ratio, and the conditions of the measurement.

    `max_regression` is the share by which the candidate may be slower; `blocks_needed` is None
    unless the verdict is inconclusive; `time_over` says that the time ended before the last look.
    """

    ratio: Ratio
    verdict: str
    max_regression: float
    blocks_needed: int | None
    processes: int
    blocks: int
    time_over: bool


class PairedBlocks(TypedDict):
    """Milliseconds of a run in each block, by process and block."""

    candidate: list[list[float]]
    baseline: list[list[float]]


class Judged(Judgement):
    """A candidate, judged against a baseline."""

    candidate: FileRow
    baseline: FileRow
    blocks_ms: PairedBlocks


class Comparison(Judged):
    """Two files that were measured together."""


Progress = Callable[[int, Interval, float], object]
"""Called after each process with their number, the ratio so far, and the seconds spent."""


def compare(
    candidate: Path,
    baseline: Path,
    tolerance: float,
    protocol: Protocol | None = None,
    on_process: Progress | None = None,
) -> Comparison:
    """Measure both files together, extend while inconclusive, and judge.

    Returns the result of `edgecompress bench --against`, with the conditions of the measurement.
    `tolerance` is the share by which the candidate may be slower (0.05: 5 %); `UsageError` for one
    outside 0..1.
    """
    protocol = protocol or Protocol()
    if not 0 <= tolerance <= 1:
        raise UsageError(f"tolerance {tolerance} is outside 0..1: write 0.05 for 5 %")

    def ratio_of(measured: Measured) -> Interval:
        """Candidate / baseline, block by block."""
        ratios = [blocks[:, 0] / blocks[:, 1] for blocks in measured.blocks_ms]
        return interval(ratios, protocol.seed, protocol.looks_at_most)

    measured = measured_until_clear(
        [candidate, baseline], ratio_of, tolerance, protocol, on_process
    )
    return {
        "candidate": measured.file_row(0, candidate),
        "baseline": measured.file_row(1, baseline),
        "blocks_ms": {
            "candidate": [blocks.tolist() for blocks in measured.blocks_of(0)],
            "baseline": [blocks.tolist() for blocks in measured.blocks_of(1)],
        },
        **judged(ratio_of(measured), tolerance, measured, protocol),
    }


def measured_until_clear(
    models: Sequence[Path],
    ratio_of: Callable[[Measured], Interval],
    tolerance: float,
    protocol: Protocol,
    on_process: Progress | None,
) -> Measured:
    """What is measured up to the look at which the ratio is no longer inconclusive."""

    def watch(measured: Measured, spent_s: float) -> None:
        if on_process is not None:
            on_process(len(measured.blocks_ms), ratio_of(measured), spent_s)

    return measure_until(
        models,
        protocol,
        lambda measured: verdict(ratio_of(measured), tolerance) != "inconclusive",
        watch,
    )


def judged(ratio: Interval, tolerance: float, measured: Measured, protocol: Protocol) -> Judgement:
    """The verdict on a ratio, and the conditions of the measurement.

    With fewer processes than `protocol.processes`, since the time ended, it is inconclusive: where
    a model lands in memory differs from process to process.
    """
    processes = len(measured.blocks_ms)
    blocks = sum(len(process) for process in measured.blocks_ms)
    is_known = processes >= protocol.processes
    outcome = verdict(ratio, tolerance) if is_known else "inconclusive"
    is_open = outcome == "inconclusive" and is_known
    return {
        "ratio": {"median": ratio.median, "ci95": ratio.bounds()},
        "verdict": outcome,
        "max_regression": tolerance,
        "blocks_needed": blocks_needed(ratio, tolerance, blocks) if is_open else None,
        "processes": processes,
        "blocks": blocks,
        "time_over": measured.time_over,
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
