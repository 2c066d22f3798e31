"""Medians with 95 % intervals by bootstrap, and the verdict on a ratio.

Values come in groups, one per process. They are resampled over groups and, within them, over
values; the interval is widened by sqrt(P / (P - 1)) for P groups.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgecompress.measure.runtime import Array

RESAMPLES = 4000
ERROR = 5.0
"""Per cent by which an interval may miss, at all looks together."""


@dataclass(frozen=True)
class Interval:
    """A median with its 95 % interval."""

    median: float
    low: float
    high: float

    def bounds(self) -> list[float | None]:
        """[low, high] as JSON has them: None where one is unbounded."""
        return [bound if math.isfinite(bound) else None for bound in (self.low, self.high)]


def resampled_medians(groups: Sequence[Array], seed: int, count: int = RESAMPLES) -> Array:
    """Medians `(count,)` of values resampled over groups `(n,)`, then within them."""
    generator = np.random.default_rng(seed)
    size = min(len(group) for group in groups)
    # (groups, values)
    table = np.stack([np.asarray(group[:size], dtype=np.float64) for group in groups])
    chosen = generator.integers(0, len(groups), (count, len(groups)))
    within = generator.integers(0, size, (count, len(groups), size))
    medians: Array = np.median(table[chosen[:, :, None], within].reshape(count, -1), axis=1)
    return medians


def interval(groups: Sequence[Array], seed: int = 0, looks: int = 1) -> Interval:
    """The median of all values of groups `(n,)`, and its interval. Where it is looked at up to
    `looks` times, each interval is that of 100 - 5 / `looks` per cent (Bonferroni), so that all are
    right with 95 %.
    """
    median = float(np.median(np.concatenate(list(groups))))
    return _widened(median, resampled_medians(groups, seed), len(groups), looks)


def ratio_of_medians(
    candidate: Sequence[Array],
    baseline: Sequence[Array],
    scale: float,
    seed: int,
    looks: int = 1,
) -> Interval:
    """`scale` times the ratio of two medians that were measured apart, each over groups `(n,)` and
    resampled by itself; `looks` as in `interval`.
    """
    medians = [np.median(np.concatenate(list(groups))) for groups in (candidate, baseline)]
    median = scale * float(medians[0] / medians[1])
    resampled = scale * resampled_medians(candidate, seed) / resampled_medians(baseline, seed + 1)
    return _widened(median, resampled, min(len(candidate), len(baseline)), looks)


def _widened(median: float, resampled: Array, groups: int, looks: int) -> Interval:
    """The interval of one group alone is unbounded."""
    if groups < 2:
        return Interval(median, -math.inf, math.inf)
    tail = ERROR / (2 * looks)
    low, high = (float(bound) for bound in np.percentile(resampled, (tail, 100 - tail)))
    factor = math.sqrt(groups / (groups - 1))
    return Interval(median, median - factor * (median - low), median + factor * (high - median))


def verdict(ratio: Interval, tolerance: float) -> str:
    """`pass`, `regression` or `inconclusive` for a ratio candidate / baseline and a tolerance
    (0.05: 5 % slower is allowed).
    """
    if ratio.low > 1 + tolerance:
        return "regression"
    return "pass" if ratio.high <= 1 + tolerance else "inconclusive"


def blocks_needed(ratio: Interval, tolerance: float, blocks: int) -> int | None:
    """Blocks that would settle an inconclusive result if its median stays: the interval shrinks
    with the square root of their number. None if no number would.
    """
    distance = abs(ratio.median - (1 + tolerance))
    half = max(ratio.high - ratio.median, ratio.median - ratio.low)
    if distance <= 1e-4 or not math.isfinite(half):
        return None
    return math.ceil(blocks * (half / distance) ** 2)
