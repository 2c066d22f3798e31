"""The best channels by score, for given widths: `top` in each group by itself, `top_overall` across
groups.

Scores map a group to a tensor (C,), higher = keep. Ties go to the earlier group and the lower
channel.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from edgecompress.core.graph import ChannelGroup


def top(
    scores: Mapping[ChannelGroup, Tensor], widths: Mapping[str, int]
) -> dict[ChannelGroup, Tensor]:
    """Local choice: bool masks (C,) of the `widths[name]` best channels of each group, by `scores`
    (C,).

    Of equal scores the lower channel stays. Groups not named keep all channels.
    """
    return {
        group: best(values, min(widths.get(group.name, group.size), group.size))
        for group, values in scores.items()
    }


def top_overall(
    scores: Mapping[ChannelGroup, Tensor], widths: Mapping[str, int], floors: Mapping[str, int]
) -> dict[ChannelGroup, Tensor]:
    """Global choice: bool masks (C,) of as many channels as `widths` leaves in total, those with
    the highest `scores` (C,) divided by their group's mean.

    Groups not named in `widths` keep all channels; no other falls below `floors[name]`. Of equal
    scores the earlier group and lower channel stay.
    """
    keep = {group: torch.ones(group.size, dtype=torch.bool) for group in scores}
    competing = [group for group in scores if group.name in widths]
    if not competing:
        return keep

    relative = {group: _relative(scores[group]) for group in competing}
    guaranteed = {
        group: best(relative[group], min(floors.get(group.name, 1), group.size))
        for group in competing
    }
    total = sum(min(widths[group.name], group.size) for group in competing)
    at_least = sum(int(mask.sum()) for mask in guaranteed.values())

    ranked = torch.cat(
        [torch.where(guaranteed[group], torch.inf, relative[group]) for group in competing]
    )
    stays = best(ranked, max(total, at_least)).split([group.size for group in competing])
    return keep | dict(zip(competing, stays, strict=True))


def _relative(scores: Tensor) -> Tensor:
    """`scores` (C,) divided by their mean, so that groups of different layers compare."""
    return scores.double() / scores.double().mean().clamp_min(1e-30)


def best_first(scores: Tensor) -> Tensor:
    """Channels (C,) in the order of falling `scores` (C,); of equal ones the lower first."""
    return scores.double().argsort(descending=True, stable=True)


def best(scores: Tensor, count: int) -> Tensor:
    """Bool (C,), true for the `count` channels with the highest `scores` (C,)."""
    return mask_of(best_first(scores), count)


def mask_of(order: Tensor, count: int) -> Tensor:
    """Bool (C,), true for the first `count` channels of `order` (C,)."""
    mask = torch.zeros(len(order), dtype=torch.bool)
    mask[order[:count]] = True
    return mask
