"""The state of a training between two steps, and what it takes to resume from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

from torch import Tensor, nn

from edgecompress.core import trace
from edgecompress.core.shrink import shrink
from edgecompress.train.averaging import AveragedState
from edgecompress.train.best import BestState
from edgecompress.train.companion import Companion, Kept

Masks = dict[str, Tensor]
"""The keep masks (C,) of one cut, by group name."""


class FitState(TypedDict):
    """A training after one of its steps. `torch.save` writes it; keys are the file format.

    `done` batches of `epoch` are done. `initial` is the row of the network before the training,
    where that is a candidate. `loss_sum` and `seen` (samples) are those of the epoch so
    far. `cuts` are the masks of all cuts, which applied again to the first network give that of
    `model`.
    """

    epoch: int
    done: int
    step: int
    rate: float
    loss_sum: float
    seen: int
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    random: Tensor
    rows: list[dict[str, Any]]
    initial: dict[str, Any] | None
    best: BestState
    cuts: list[Masks]
    companion: Kept
    averaged: AveragedState | None


def replay_cuts(
    model: nn.Module, cuts: Sequence[Masks], companion: Companion, example: Tensor
) -> list[nn.Module]:
    """`model` and the network after each of `cuts`, all followed by `companion`; `example`
    (1, C, H, W) is an input.

    The weights of the smaller networks are slices of those of `model`, not those of the state.
    """
    models = [model]
    for masks in cuts:
        before = models[-1]
        groups = trace(before, example).groups
        keep = {group: masks[group.name] for group in groups if group.name in masks}
        small = shrink(before, keep).to(example.device)
        companion.follow(before, small, keep)
        models.append(small)
    return models


def copied(model: nn.Module) -> dict[str, Tensor]:
    """The tensors (...) of `model` by name, copied."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}
