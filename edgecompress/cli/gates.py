"""The gates of `edgecompress bench` beside latency: bytes, accuracy, drift."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from edgecompress.measure.requests import Gate

if TYPE_CHECKING:
    from edgecompress.measure.regression import Judged, Stored


class Gated(Protocol):
    """Which gates are asked for; None for those that are not."""

    @property
    def max_bytes(self) -> int | None:
        """Largest size in bytes."""

    @property
    def max_drop(self) -> float | None:
        """Accuracy that may be lost, absolute."""

    @property
    def against(self) -> Path | None:
        """The file that it is compared with."""

    @property
    def data(self) -> str | None:
        """Data whose test split the accuracy is measured on."""

    @property
    def image_size(self) -> int | None:
        """Side of its images."""

    @property
    def threads(self) -> int | None:
        """Threads to compute on."""

    @property
    def history(self) -> Path | None:
        """The file of measurements in which a drift is looked for."""

    @property
    def tolerance(self) -> float:
        """The share by which it may have become slower."""


class BytesGate(Gate):
    """The size of the file, in bytes."""

    bytes: int
    max_bytes: int


class AccuracyGate(Gate):
    """Accuracy (R² of a regression) on the test split, and how much of it may be lost, absolute."""

    candidate: float
    baseline: float
    max_drop: float


class DriftGate(Gate):
    """Has the file become slower over many commits? `began` is the first slower one."""

    measurements: int
    began: str | None


def gates_of(
    model: Path,
    options: Gated,
    result: Judged | Stored,
    blocks_ms: Sequence[Sequence[float]],
) -> list[Gate]:
    """The gates beside latency; `blocks_ms` are those of the candidate."""
    gates: list[Gate] = []
    if options.max_bytes is not None:
        gates.append(_bytes_gate(model, options.max_bytes))
    if options.max_drop is not None and options.against is not None and options.data is not None:
        gates.append(_accuracy_gate(model, options.against, options.data, options))
    if options.history is not None:
        gates.append(_drift_gate(options.history, options.tolerance, result, blocks_ms))
    return gates


def _drift_gate(
    history: Path, tolerance: float, result: Judged | Stored, blocks_ms: Sequence[Sequence[float]]
) -> DriftGate:
    """Append the measurement to the history; has it become slower over many commits?"""
    from edgecompress.measure import drift as drifts

    entry = drifts.entry_of(result["candidate"], blocks_ms, result)
    series = drifts.appended(history, entry)
    found = drifts.drift([one["fastest_ms"] for one in series], tolerance)
    gate: DriftGate = {
        "name": "drift",
        "passed": found is None,
        "measurements": len(series),
        "began": None,
        "text": f"no drift above {tolerance:.1%} in {len(series)} measurement(s)",
    }
    if found is None:
        return gate
    began = series[found.began]["commit"]
    text = (
        f"{found.share:.1%} slower than it once was, allowed {tolerance:.1%}; it began with "
        f"measurement {found.began + 1} of {len(series)}, commit {began}"
    )
    return {**gate, "began": began, "text": text}


def _bytes_gate(model: Path, limit: int) -> BytesGate:
    from edgecompress.measure import runtime

    size = runtime.file_bytes(model)
    return {
        "name": "bytes",
        "passed": size <= limit,
        "bytes": size,
        "max_bytes": limit,
        "text": f"{size} bytes, allowed {limit}",
    }


def _accuracy_gate(model: Path, against: Path, data: str, options: Gated) -> AccuracyGate:
    from edgecompress.measure import runtime
    from edgecompress.measure.score import score_on

    def score(path: Path) -> float:
        loaded = runtime.load(path, threads=options.threads)
        row = score_on(loaded, data, options.image_size)
        return row["accuracy"] if "accuracy" in row else row["metric"]

    new, old, allowed = score(model), score(against), options.max_drop or 0.0
    return {
        "name": "accuracy",
        "passed": old - new <= allowed + 1e-12,
        "candidate": new,
        "baseline": old,
        "max_drop": allowed,
        "text": (
            f"accuracy {new:.4f} against {old:.4f} on the test split of {data}, allowed drop "
            f"{allowed:.4f}"
        ),
    }
