"""Learning rate over a run, as a factor of its peak."""

from __future__ import annotations

import math
from collections.abc import Sequence

SCHEDULES = ("linear", "cosine", "constant", "multistep")
LOWEST = 1e-3
"""Where a decay ends in zero, the factor never falls below this."""


def factor(
    schedule: str,
    step: int,
    total: int,
    warmup: float,
    milestones: Sequence[float] = (),
    gamma: float = 0.1,
) -> float:
    """The factor, in (0, 1], of `step` (from 0) out of `total` steps.

    It rises linearly over the share `warmup` of the run, w steps, as (step + 1) / w. Then, with
    p = (step - w) / (total - w), it follows `schedule`: `linear` 1 - p, `cosine`
    (1 + cos(pi p)) / 2 (Loshchilov and Hutter 2017, equation 5, without restarts), `constant` 1, or
    `multistep`: times `gamma` at each of the `milestones`, shares of the whole run.
    """
    rise = max(1, int(total * warmup)) if warmup > 0 else 0
    if step < rise:
        return (step + 1) / rise
    progress = (step - rise) / max(1, total - rise)
    left = {
        "linear": 1 - progress,
        "cosine": (1 + math.cos(math.pi * progress)) / 2,
        "constant": 1.0,
        "multistep": gamma ** sum(step >= round(share * total) for share in milestones),
    }
    return left[schedule] if schedule == "multistep" else max(LOWEST, left[schedule])
