"""Successive halving: the better half of all contenders goes on with longer trainings, until one is
left (Jamieson and Talwalkar 2016).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from edgecompress.data.images import stratified
from edgecompress.train.settings import LARGE_SPLIT

if TYPE_CHECKING:
    from edgecompress.run.context import Context

T = TypeVar("T")
MORE = 2
"""Each round has trainings so many times as long as the one before, for half of the contenders."""


def on_few(context: Context) -> Context:
    """The context with at most `LARGE_SPLIT` training images, each class in proportion: who is
    ahead shows on few.
    """
    data = context.data
    if len(data.train) <= LARGE_SPLIT:
        return context
    (_, chosen) = stratified(data.train.labels, (LARGE_SPLIT / len(data.train),))
    return replace(context, data=replace(data, train=data.train.rows(chosen)))


def halved(left: Sequence[T], rank: Callable[[T], tuple[float, ...]]) -> list[T]:
    """The better half of `left`, rounded up: the smallest by `rank`; the first wins a tie."""
    return sorted(left, key=rank)[: math.ceil(len(left) / 2)]


def winner(
    entered: Sequence[T], train: Callable[[T, int], None], rank: Callable[[T], tuple[float, ...]]
) -> T:
    """The one that is left of `entered`, which the first round has trained. `train(one, number)`
    trains it further in round `number` (from 1), `MORE**number` times as long as in the first.
    """
    left, number = halved(entered, rank), 1
    while len(left) > 1:
        for one in left:
            train(one, number)
        left, number = halved(left, rank), number + 1
    return left[0]


def length(contenders: int) -> int:
    """What all trainings of so many contenders take, in those of the first round."""
    total, each = contenders, 1
    while (contenders := math.ceil(contenders / 2)) > 1:
        each *= MORE
        total += each * contenders
    return total
