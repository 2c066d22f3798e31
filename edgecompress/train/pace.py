"""How many epochs a time allows: measured before the training, and watched while it runs."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

DRIFT = 0.05
"""Where the end comes by so large a part of the time too early or too late, epochs are counted
anew.
"""
MOST, LIMIT_S = 13, 3.0
"""Steps, and their seconds, that are measured at most."""


@dataclass
class Pace:
    """The epochs of a training that is to take `seconds`.

    They are fixed by what an epoch takes when it is measured, so that the same number of epochs
    gives the same result again, unless the machine becomes faster or slower on the way.
    """

    seconds: float
    epochs: int = 1
    _began: float = field(default_factory=time.monotonic)
    _since: float = 0.0
    _done: int = 0

    def begin(self, epoch_s: float, done: int = 0) -> int:
        """The number of epochs of `epoch_s` seconds that fit best after `done`, at least one
        more.
        """
        self._since, self._done = time.monotonic(), done
        self.epochs = done + max(1, round(self._left() / epoch_s))
        return self.epochs

    def after(self, epoch: int) -> int:
        """The same when `epoch` of them are done."""
        left = self._left()
        epoch_s = (time.monotonic() - self._since) / (epoch - self._done)
        if abs(left - (self.epochs - epoch) * epoch_s) > DRIFT * self.seconds:
            self.epochs = epoch + max(0, round(left / epoch_s))
        return self.epochs

    def _left(self) -> float:
        return self.seconds - (time.monotonic() - self._began)


@dataclass
class Lap:
    """Times of single steps: the first prepares much, the others are alike."""

    times: list[float] = field(default_factory=list)
    alone: bool = True
    """No other process measures the same steps, so the time may end them."""

    def add(self, seconds: float) -> None:
        """One more step."""
        self.times.append(seconds)

    def enough(self) -> bool:
        """Can the others be told from the first?"""
        late = self.alone and len(self.times) > 2 and sum(self.times[1:]) > LIMIT_S
        return late or len(self.times) >= MOST

    def epoch_s(self, steps: int) -> float:
        """What `steps` of them take, the first as long as it took: what it prepares, such as a
        teacher's answers for all images, is prepared for every epoch.
        """
        later = self.times[1:] or self.times
        return max(self.times[0], min(later)) + (steps - 1) * sum(later) / len(later)
