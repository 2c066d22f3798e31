"""Stored measurements of a file, to compare a later one with."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict, cast

import numpy as np

from edgecompress.errors import UsageError
from edgecompress.measure import machine
from edgecompress.measure.bootstrap import ratio_of_medians
from edgecompress.measure.comparison import Judged, conditions, judged
from edgecompress.measure.processes import Measured, Protocol, measure
from edgecompress.measure.requests import FileRow

SCHEMA = 1
_HARDWARE_KEYS = ("cpu", "cores", "machine", "instructions")
"""What makes two machines the same."""


class Baseline(TypedDict):
    """A stored measurement, as `compare_stored` needs it; `blocks_ms` are milliseconds by process
    and block.
    """

    schema: int
    candidate: FileRow
    blocks_ms: list[list[float]]
    batch: int
    threads: int
    provider: str
    input: str
    reference_ms: float
    hardware: dict[str, object]


class Stored(Baseline):
    """The measurement of one file alone, as a baseline file holds it."""

    versions: dict[str, str]


class StoredComparison(Judged):
    """A file that was measured now, and a stored baseline; `normalised` when that was measured on
    another machine.
    """

    normalised: bool


_NEEDED = ("candidate", "batch", "threads", "provider", "input", "reference_ms", "hardware")


def stored(model: Path, protocol: Protocol) -> Stored:
    """The measurement of `model` as a baseline file holds it: percentiles, the blocks of every
    process, and the conditions.
    """
    measured = measure([model], protocol, protocol.processes)
    return {
        "schema": SCHEMA,
        "candidate": measured.file_row(0, model),
        "blocks_ms": [blocks.tolist() for blocks in measured.blocks_of(0)],
        **conditions(measured, protocol),
    }


def read_stored(path: Path) -> Baseline:
    """The baseline in a file that holds the result of `stored`. Raises `UsageError` for any other
    file.
    """
    command = "edgecompress bench MODEL --json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"baseline '{path}' cannot be read: {error}; make one with {command} > {path}"
        ) from error
    if mistake := _mistake(values):
        raise UsageError(f"baseline '{path}' {mistake}: make one with {command} > {path}")
    return cast(Baseline, values)


def _mistake(values: object) -> str | None:
    """Why parsed JSON is not a baseline; None if it is one."""
    blocks = values.get("blocks_ms") if isinstance(values, dict) else None
    if not isinstance(values, dict) or not _are_groups(blocks):
        return "holds no measurements"
    times = [time for group in values["blocks_ms"] for time in group]
    if not all(_is_duration(time) for time in [*times, values.get("reference_ms", 1.0)]):
        return "holds times that are not milliseconds above 0"
    if values.get("schema") != SCHEMA or not _has_dicts(values, "candidate", "hardware"):
        return "is not of this version"
    missing = next((key for key in _NEEDED if key not in values), None)
    return f"lacks '{missing}'" if missing else None


def _are_groups(blocks: object) -> bool:
    """True for a list of two or more lists that are not empty."""
    return (
        isinstance(blocks, list)
        and len(blocks) >= 2
        and all(isinstance(group, list) and group for group in blocks)
    )


def _is_duration(value: object) -> bool:
    if not isinstance(value, float | int) or isinstance(value, bool):
        return False
    return 0 < value < math.inf


def _has_dicts(values: Mapping[str, object], *keys: str) -> bool:
    return all(isinstance(values.get(key), dict) for key in keys)


def compare_stored(
    model: Path,
    baseline: Baseline,
    tolerance: float,
    protocol: Protocol,
    *,
    cross_machine: bool,
) -> StoredComparison:
    """Measure `model` now, and compare it with a stored baseline.

    Raises `UsageError` when that was measured on other hardware, threads or batches, unless
    `cross_machine`: then both are divided by the time of the reference workload on their machine,
    and the result is marked `normalised`.
    """
    is_same = _is_this_machine(baseline, cross_machine)
    measured = measure([model], protocol, protocol.processes)
    _check_conditions(baseline, measured, protocol)
    scale = 1.0 if is_same else baseline["reference_ms"] / measured.reference_ms
    then = [np.asarray(group, dtype=np.float64) for group in baseline["blocks_ms"]]
    ratio = ratio_of_medians(measured.blocks_of(0), then, scale, protocol.seed)
    return {
        "candidate": measured.file_row(0, model),
        "baseline": baseline["candidate"],
        **judged(ratio, tolerance, measured, protocol),
        "normalised": not is_same,
    }


def _is_this_machine(baseline: Baseline, cross_machine: bool) -> bool:
    """True if the baseline was measured here. Raises `UsageError` otherwise, unless
    `cross_machine`.
    """
    here = machine.hardware()
    there = baseline["hardware"]
    if all(here.get(key) == there.get(key) for key in _HARDWARE_KEYS):
        return True
    if not cross_machine:
        raise UsageError(
            f"baseline was measured on {_named(there)}, this is {_named(here)}: measure it here, "
            "or pass --cross-machine for a rough, normalised comparison"
        )
    return False


def _named(hardware: Mapping[str, object]) -> str:
    cpu, cores = hardware.get("cpu"), hardware.get("cores")
    return f"{cpu} with {cores} core(s) and {hardware.get('instructions')}"


def _check_conditions(baseline: Baseline, measured: Measured, protocol: Protocol) -> None:
    if (baseline["input"], baseline["provider"]) != (measured.input, protocol.provider):
        raise UsageError(
            f"baseline was measured on inputs {baseline['input']} by {baseline['provider']}, "
            f"this is {measured.input} by {protocol.provider}: "
            "compare models of one input on one provider"
        )
    if baseline["batch"] != measured.batch or baseline["threads"] != measured.threads:
        raise UsageError(
            f"baseline was measured with batch {baseline['batch']} and "
            f"{baseline['threads']} thread(s), this is batch {measured.batch} with "
            f"{measured.threads}: pass the same --batch-size and --threads"
        )
