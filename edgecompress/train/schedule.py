"""Learning rate over a run, as a factor of its peak."""

from __future__ import annotations

import math

SCHEDULES = ("linear", "cosine", "constant")


def factor(schedule: str, step: int, total: int, warmup: float) -> float:
    """Factor in (0, 1] for `step` of `total`: linear up over the share `warmup` of the run, then as
    `schedule` says down to 0.001.
    """
    rise = max(1, int(total * warmup)) if warmup > 0 else 0
    if step < rise:
        return (step + 1) / rise
    done = (step - rise) / max(1, total - rise)
    left = {"linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2, "constant": 1.0}[
        schedule
    ]
    return max(1e-3, left)
