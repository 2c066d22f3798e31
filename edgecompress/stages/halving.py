"""Successive halving: the better half of all contenders goes on with longer trainings, until one is
left (Jamieson and Talwalkar 2016).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from torch import nn

from edgecompress.data.images import stratified
from edgecompress.run.context import Context
from edgecompress.stages.common import watched
from edgecompress.stages.fields import Training
from edgecompress.stages.training import fit_settings, train_model
from edgecompress.train.fit import FitResult, Loss
from edgecompress.train.settings import LARGE_SPLIT, FitSettings

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


@dataclass
class Rounds:
    """The trainings of a contest, on `few` of the images of `context`; those `ahead` have the
    length of so many of the first round, and share the time that the stage has left.
    """

    context: Context
    few: Context
    settings: Training
    ahead: int

    @classmethod
    def of(cls, context: Context, settings: Training, contenders: int) -> Rounds:
        """Those of so many contenders."""
        return cls(context, on_few(context), settings, length(contenders))

    def train(
        self,
        network: nn.Module,
        loss: Callable[[Context, FitSettings], Loss],
        text: str,
        number: int,
        *,
        first: int,
        shaped_like: nn.Module | None = None,
        faster: tuple[tuple[str, float], ...] = (),
        keep_initial: bool = True,
    ) -> FitResult:
        """Train `network` in place in round `number` (from 0), where `first` epochs are a first
        round's unless the settings have them. The rest is as for `shaped_like`, by default itself.
        """
        times, given = MORE**number, self.settings.epochs
        epochs = (first if given is None else given) * times
        fixed = self.settings.model_copy(update={"epochs": epochs})
        chosen = fit_settings(self.context, shaped_like or network, fixed, epochs=epochs)
        chosen = replace(chosen, faster=faster, elastic=given is None)
        hooks = watched(self.context, text, self.settings.patience, keep_initial=keep_initial)
        seed, share = self.context.seed + number, times / self.ahead
        self.ahead -= times
        made = loss(self.few, chosen)
        return train_model(self.few, network, made, chosen, hooks, seed=seed, share=share)
