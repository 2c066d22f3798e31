"""Which of the formats that were made ships."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from edgecompress.errors import UsageError
from edgecompress.formats import named
from edgecompress.measure.bootstrap import Interval
from edgecompress.proportions import shown
from edgecompress.run.state import FormatRow, SizePlan

if TYPE_CHECKING:
    from edgecompress.stages.quantize import QuantizeStage

Ratio = Callable[[FormatRow, FormatRow], Interval]
"""Measures the latency of a file over that of another one."""
CLEARLY_FASTER = 0.9
"""The fastest format wins over the smallest when its latency is at most this factor of it, with
95 % certainty in fresh processes.
"""


def choose(
    rows: list[FormatRow],
    plan: SizePlan | None,
    settings: QuantizeStage,
    ratio: Ratio,
    refused: Mapping[str, str] | None = None,
) -> tuple[FormatRow, str]:
    """The row that ships, and the reason.

    Among the formats that may ship: those that are not larger than an equally accurate fp32 file;
    of these, those within the byte target; of these, those whose validation accuracy is within
    `max_drop` of the best, or without that limit not clearly more than `max_int8_loss` below fp32
    on the same images; of these, the fastest file when it is clearly so (10 %), else the smallest.
    The `p50_ms` of the rows, from one process, only propose the fastest: `ratio` measures it
    against the smallest, and its whole interval must say so.
    Raises `UsageError` where every format that may ship was `refused`.
    """
    allowed = _allowed(rows, plan, settings)
    if not allowed:
        why = "; ".join(f"no {form}: {reason}" for form, reason in (refused or {}).items())
        raise UsageError(
            f"{why}: model-fp32.onnx is complete; ship that, or choose another format with "
            "--quantize"
        )
    allowed, pointless = _worth_it(allowed)
    limit = None if plan is None else plan.bytes
    fitting = [r for r in allowed if limit is None or r.bytes <= limit] or allowed
    best = max(r.accuracy for r in fitting)
    loss = settings.max_int8_loss if settings.max_drop is None else settings.max_drop
    plain = next((r for r in fitting if r.format == "fp32"), None)
    sure = plain is None or plain.accuracy >= best - loss  # fp32 stands for the best
    good = [
        r for r in fitting if r.accuracy >= best - loss or (sure and _is_near(r, settings))
    ] or fitting
    fastest = min(good, key=lambda r: r.p50_ms)
    smallest = min(good, key=lambda r: r.bytes)
    chosen, taken = smallest, None
    if fastest.p50_ms <= CLEARLY_FASTER * smallest.p50_ms:
        taken = ratio(fastest, smallest)
        chosen = fastest if taken.high <= CLEARLY_FASTER else smallest
    if len(allowed) == 1 and not pointless and not refused:
        why = f"{chosen.format} was planned"
    elif len(good) == 1:
        why = f"{chosen.format} alone fits and keeps its accuracy"
    else:
        kind = "fastest" if chosen is fastest else "smallest"
        limit_text = f"within {loss:.1%} of the best"
        if chosen.accuracy < best - loss:
            limit_text = f"not clearly more than {loss:.1%} below fp32"
        why = f"{chosen.format} is the {kind} {limit_text}"
        if taken is not None:
            why += f", {_seconds(fastest, smallest, taken)}"
    why += "".join(f", no {form}" for form in refused or {})
    why += "".join(f", {r.format} would be larger ({r.bytes} bytes)" for r in pointless)
    return chosen, why


def figures(chosen: FormatRow, size: int) -> str:
    """What is known of the file that ships, of `size` bytes with all its metadata."""
    pair = chosen.against_fp32
    score = f"{chosen.accuracy:.4f}" if pair is None else shown(chosen.accuracy, pair.n)
    return f"{size} bytes, {score} on validation, p50 {chosen.p50_ms:.3f} ms"


def _seconds(fastest: FormatRow, smallest: FormatRow, taken: Interval) -> str:
    """The time of the fastest file, against the smallest: `fp32 takes 0.52 of the time of int8`."""
    sure = f"95 % {taken.low:.2f} to {taken.high:.2f}"
    if None in taken.bounds():
        sure = "too few processes for an interval"
    return f"{fastest.format} takes {taken.median:.2f} of the time of {smallest.format} ({sure})"


def _worth_it(rows: list[FormatRow]) -> tuple[list[FormatRow], list[FormatRow]]:
    """The rows, without those that are larger than fp32's and no more accurate; these apart."""
    plain = next((row for row in rows if row.format == "fp32"), None)
    if plain is None:
        return rows, []
    pointless = [r for r in rows if r.bytes > plain.bytes and r.accuracy <= plain.accuracy]
    return [row for row in rows if row not in pointless], pointless


def _is_near(row: FormatRow, settings: QuantizeStage) -> bool:
    """Without a limit of the user's own, a format is good unless it clearly loses more than
    `max_int8_loss` against fp32 on the same images.
    """
    known = settings.max_drop is None and row.against_fp32 is not None
    return known and not row.loses_more_than(settings.max_int8_loss)


def _allowed(
    rows: list[FormatRow], plan: SizePlan | None, settings: QuantizeStage
) -> list[FormatRow]:
    """The formats that may ship."""
    if plan is not None:
        return [row for row in rows if row.format in plan.formats]
    if settings.quantize != "auto":
        return [row for row in rows if row.format == named(settings.quantize)]
    return rows
