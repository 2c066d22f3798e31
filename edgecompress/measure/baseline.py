"""Stored measurements of a file, to compare a later one with."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import numpy as np
from typing_extensions import TypedDict

from edgecompress import files
from edgecompress.errors import UsageError
from edgecompress.measure import machine
from edgecompress.measure.bootstrap import Interval, ratio_of_medians
from edgecompress.measure.comparison import (
    Judged,
    Progress,
    compare,
    conditions,
    judged,
    measured_until_clear,
)
from edgecompress.measure.processes import Measured, Protocol, Watch, measure
from edgecompress.measure.requests import FileRow

SCHEMA = 2
"""From 2 on blocks hold the fastest run, not the mean."""
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
    versions: dict[str, str]


class Stored(Baseline):
    """The measurement of one file alone, as a baseline file holds it; `time_over` says that the
    time ended before all processes had run.
    """

    time_over: bool


class StoredComparison(Judged):
    """A file that was measured now, and a stored baseline; `normalised` when that was measured on
    another machine, `remeasured` when its file was measured now, too.
    """

    normalised: bool
    remeasured: bool


_NEEDED = (
    "candidate",
    "batch",
    "threads",
    "provider",
    "input",
    "reference_ms",
    "hardware",
    "versions",
)


def stored(model: Path, protocol: Protocol, watch: Watch | None = None) -> Stored:
    """The measurement of `model` as a baseline file holds it: percentiles, the blocks of every
    process, and the conditions.
    """
    measured = measure([model], protocol, watch)
    return {
        "schema": SCHEMA,
        "candidate": measured.file_row(0, model),
        "blocks_ms": [blocks.tolist() for blocks in measured.blocks_of(0)],
        "time_over": measured.time_over,
        **conditions(measured, protocol),
    }


def read_stored(path: Path) -> Baseline:
    """The baseline in a file that holds the result of `stored`. Raises `UsageError` for any other
    file.
    """
    command = "edgecompress bench MODEL --json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
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
    if values.get("schema") != SCHEMA or not _has_dicts(
        values, "candidate", "hardware", "versions"
    ):
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
    cross_machine: bool = False,
    on_process: Progress | None = None,
) -> StoredComparison:
    """Measure `model` now, and compare it with a stored baseline.

    One that was measured on another machine or by another ONNX Runtime says nothing of this one:
    where its file is still at hand, both are measured now (`remeasured`). With `cross_machine` both
    are divided by the time of the reference workload on their machine, and the result is marked
    `normalised`. Raises `UsageError` otherwise, and for other threads, batches or inputs.
    """
    other = _difference(baseline)
    if other is not None and not cross_machine:
        path = _file_at_hand(baseline)
        if path is None:
            raise UsageError(
                f"baseline was measured {other}, and its file '{baseline['candidate']['file']}' is "
                "not at hand to measure it again: give --against OLD.onnx, measure it here, or "
                "pass --cross-machine for a rough, normalised comparison"
            )
        compared = compare(model, path, tolerance, protocol, on_process)
        return {**compared, "normalised": False, "remeasured": True}
    scale = None if other is None else baseline["reference_ms"]
    then = [np.asarray(group, dtype=np.float64) for group in baseline["blocks_ms"]]

    def ratio_of(measured: Measured) -> Interval:
        _check_measured(baseline, measured, protocol)
        factor = 1.0 if scale is None else scale / measured.reference_ms
        looks = protocol.looks_at_most
        return ratio_of_medians(measured.blocks_of(0), then, factor, protocol.seed, looks)

    _check_conditions(baseline, protocol)
    measured = measured_until_clear([model], ratio_of, tolerance, protocol, on_process)
    return {
        "candidate": measured.file_row(0, model),
        "baseline": baseline["candidate"],
        "blocks_ms": {
            "candidate": [blocks.tolist() for blocks in measured.blocks_of(0)],
            "baseline": baseline["blocks_ms"],
        },
        **judged(ratio_of(measured), tolerance, measured, protocol),
        "normalised": other is not None,
        "remeasured": False,
    }


def _difference(baseline: Baseline) -> str | None:
    """How the baseline was measured otherwise than here; None if it was not."""
    here, there = machine.hardware(), baseline["hardware"]
    if any(here.get(key) != there.get(key) for key in _HARDWARE_KEYS):
        return f"on {_named(there)}, this is {_named(here)}"
    now, then = machine.versions()["onnxruntime"], baseline["versions"].get("onnxruntime")
    if now != then:
        return f"by ONNX Runtime {then}, this is {now}"
    return None


def _file_at_hand(baseline: Baseline) -> Path | None:
    """The file that was measured, where it still stands unchanged."""
    row = baseline["candidate"]
    path = Path(row["file"])
    return path if path.is_file() and files.digest(path) == row.get("sha256") else None


def _named(hardware: Mapping[str, object]) -> str:
    cpu, cores = hardware.get("cpu"), hardware.get("cores")
    return f"{cpu} with {cores} core(s) and {hardware.get('instructions')}"


def _check_conditions(baseline: Baseline, protocol: Protocol) -> None:
    """Raises `UsageError` for what differs before anything is measured."""
    if baseline["provider"] != protocol.provider:
        raise UsageError(
            f"baseline was measured by {baseline['provider']}, this is {protocol.provider}: "
            "compare on one provider"
        )
    batch = baseline["batch"] if protocol.batch_size is None else protocol.batch_size
    _check_sizes(baseline, batch, protocol.threads or machine.threads())


def _check_sizes(baseline: Baseline, batch: int, threads: int) -> None:
    if baseline["batch"] != batch or baseline["threads"] != threads:
        raise UsageError(
            f"baseline was measured with batch {baseline['batch']} and "
            f"{baseline['threads']} thread(s), this is batch {batch} with {threads}: pass the same "
            "--batch-size and --threads"
        )


def _check_measured(baseline: Baseline, measured: Measured, protocol: Protocol) -> None:
    if baseline["input"] != measured.input:
        raise UsageError(
            f"baseline was measured on inputs {baseline['input']} by {baseline['provider']}, "
            f"this is {measured.input} by {protocol.provider}: "
            "compare models of one input on one provider"
        )
    _check_sizes(baseline, measured.batch, measured.threads)
