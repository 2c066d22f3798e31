"""The gates of `edgecompress bench` beside latency: bytes, accuracy, drift."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from typing_extensions import NotRequired

from edgecompress.measure.requests import Gate
from edgecompress.proportions import Paired, PairedRow

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
    difference: NotRequired[PairedRow]
    """With its interval: above the allowed drop, below it, or around it."""


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
    drift = drifts.drift([one["fastest_ms"] for one in series], tolerance)
    gate: DriftGate = {
        "name": "drift",
        "passed": drift is None,
        "measurements": len(series),
        "began": None,
        "text": f"no drift above {tolerance:.1%} in {len(series)} measurement(s)",
    }
    if drift is None:
        return gate
    began = series[drift.began]["commit"]
    text = (
        f"{drift.share:.1%} slower than it once was, allowed {tolerance:.1%}; it began with "
        f"measurement {drift.began + 1} of {len(series)}, commit {began}"
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
    """Both files on the same images, compared in pairs: lost is what is lost beyond chance."""
    from edgecompress.measure import runtime
    from edgecompress.measure.score import judged_on

    new, old = (
        judged_on(runtime.load(path, threads=options.threads), data, options.image_size)
        for path in (model, against)
    )
    allowed = options.max_drop or 0.0
    values = [one.score.get("accuracy", one.score.get("metric", 0.0)) for one in (new, old)]
    gate: AccuracyGate = {
        "name": "accuracy",
        "passed": values[1] - values[0] <= allowed + 1e-12,
        "candidate": values[0],
        "baseline": values[1],
        "max_drop": allowed,
        "text": (
            f"accuracy {values[0]:.4f} against {values[1]:.4f} on the test split of {data}, "
            f"allowed drop {allowed:.4f}"
        ),
    }
    if new.right is None or old.right is None:
        return gate
    pair = Paired.of(old.right.tolist(), new.right.tolist())
    low, high = pair.interval
    verdict = "pass" if low >= -allowed else "fail" if high < -allowed else "inconclusive"
    text = (
        f"{gate['text']}; difference {pair.difference:+.4f} (95 % {low:+.4f} to {high:+.4f}, "
        f"{pair.n} images)"
    )
    if verdict == "inconclusive":
        text += ": inconclusive, more images would settle it"
    return {
        **gate,
        "passed": verdict == "pass",
        "verdict": verdict,
        "difference": pair.as_dict(),
        "text": text,
    }
