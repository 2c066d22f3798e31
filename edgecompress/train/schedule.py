"""Learning rate over a run, as a factor of its peak."""

from __future__ import annotations


def warmup_linear(step: int, total: int, warmup: float) -> float:
    """Factor in (0, 1] for `step` of `total`: linear up over the share `warmup` of the run, then linear down to 0."""
    rise = max(1, int(total * warmup))
    if step < rise:
        return (step + 1) / rise
    return max(1e-3, 1 - (step - rise) / max(1, total - rise))
