"""How sure a share of right answers is, from the number of samples (standard library only).

interval      95 % interval of a share: Wilson 1927, "Probable inference, the law of succession, and
              statistical inference"
paired        difference of two classifiers on the same samples. Its interval: Agresti and Min 2005,
              "Simple improved confidence intervals for comparing matched proportions" (half a
              sample is added to each cell). Its p-value: McNemar 1947, exact where few samples
              differ
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from typing_extensions import TypedDict

Z = NormalDist().inv_cdf(0.975)
EXACT_BELOW = 1000
"""Samples on which two classifiers differ up to which McNemar's test is exact."""


def interval(right: int, count: int) -> tuple[float, float]:
    """The 95 % interval, within 0..1, of a share of which `right` of `count` samples are counted.

    Without samples it is (0, 1). Raises `ValueError` for more right than counted.
    """
    if not 0 <= right <= count:
        raise ValueError(f"{right} right of {count}")
    if count == 0:
        return 0.0, 1.0
    share, square = right / count, Z * Z
    centre = share + square / (2 * count)
    half = Z * math.sqrt(share * (1 - share) / count + square / (4 * count * count))
    scale = 1 + square / count
    low = 0.0 if right == 0 else (centre - half) / scale
    high = 1.0 if right == count else (centre + half) / scale
    return low, high


class PairedRow(TypedDict):
    """The difference of two accuracies on the same `n` samples, as JSON: the second minus the
    first, its 95 % interval, and McNemar's p-value.
    """

    difference: float
    ci95: list[float]
    p: float
    n: int
    only_first: int
    only_second: int


@dataclass(frozen=True)
class Paired:
    """The difference (second minus first) of two shares of right answers on the same `n` samples;
    `only_first` and `only_second` are right by one of the two.
    """

    n: int
    only_first: int
    only_second: int

    @classmethod
    def of(cls, first: Sequence[bool], second: Sequence[bool]) -> Paired:
        """From which samples each of the two has right."""
        pairs = Counter(zip(first, second, strict=True))
        return cls(pairs.total(), pairs[True, False], pairs[False, True])

    @property
    def difference(self) -> float:
        """The second share minus the first."""
        return (self.only_second - self.only_first) / self.n if self.n else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the difference, within -1..1."""
        n = self.n + 2
        first = self.only_first + 0.5
        second = self.only_second + 0.5
        shift = (second - first) / n
        half = Z * math.sqrt(max(0.0, first + second - n * shift * shift)) / n
        return max(-1.0, shift - half), min(1.0, shift + half)

    @property
    def p(self) -> float:
        """How probable so large a difference is where both are equally good (two-sided)."""
        differ, fewer = self.only_first + self.only_second, min(self.only_first, self.only_second)
        if differ == 0:
            return 1.0
        if differ < EXACT_BELOW:
            tail: float = sum(math.comb(differ, k) for k in range(fewer + 1)) / 2**differ
            return min(1.0, 2 * tail)
        z = (abs(self.only_first - self.only_second) - 1) / math.sqrt(differ)
        return 2 * (1 - NormalDist().cdf(z))

    def as_dict(self) -> PairedRow:
        """As JSON values."""
        return {
            "difference": self.difference,
            "ci95": list(self.interval),
            "p": self.p,
            "n": self.n,
            "only_first": self.only_first,
            "only_second": self.only_second,
        }


def sure(accuracy: float, known: Sequence[float] | None) -> str:
    """`95.54% (92.4 to 97.4)`: an accuracy with its `known` interval, where it has one."""
    if known is None:
        return f"{accuracy:.2%}"
    low, high = known
    return f"{accuracy:.2%} ({100 * low:.1f} to {100 * high:.1f})"


def apart(difference: float, known: Sequence[float] | None) -> str:
    """`-0.56 points (-1.60 to +0.49)`: a difference of accuracies with its `known` interval."""
    if known is None:
        return f"{100 * difference:+.2f} points"
    low, high = known
    return f"{100 * difference:+.2f} points ({100 * low:+.2f} to {100 * high:+.2f})"


def shown(accuracy: float, count: int) -> str:
    """`97.49 % (95 % 95.2 to 98.7, n 359)`."""
    low, high = interval(round(accuracy * count), count)
    return f"{accuracy:.2%} (95 % {100 * low:.1f} to {100 * high:.1f}, n {count})"
