"""What a loss learns from: another network's logits, and its feature maps, for the batch of a step.

A loss takes sources, and does not know where they come from:

FixedTeacher           a frozen network in this process; its logits are computed once per view
                       (`methods.teacher`)
FixedMaps              the feature maps of a frozen network in this process (`methods.features`)
Peer                   a network that trains on the same batches in this process
StepStudent            a network on another machine that answers step by step, with logits and maps
                       (`online.exchanges.steps`)
WeightsStudent         a network whose weights come from another machine before each epoch
                       (`online.exchanges.weights`)
RemotePeer             a network that trains on the same batches on another machine
                       (`online.mutual`)

Shapes: B samples, K classes; the feature maps of a layer are (B, C, H, W).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from edgecompress.train.batches import Batch

Size = tuple[int, int]
"""(H, W) of a feature map."""


@dataclass(frozen=True)
class TopK:
    """The k largest logits of a teacher: `values` (B, k), their classes `indices` (B, k) int64, and
    `rest` (B,), log sum exp(t / T) over all other classes.

    `rest` is -inf where k is all classes.
    """

    values: Tensor
    indices: Tensor
    rest: Tensor


Target = Tensor | TopK
"""A network's logits (B, K), all or the largest."""


class LogitSource(Protocol):
    """Another network, as a loss on logits reads it."""

    def logits(self, batch: Batch) -> Target:
        """The network's logits for `batch`, detached: (B, K), or a `TopK` of B rows.

        A loss asks once in each step, in the order of the steps.
        """


class MapSource(Protocol):
    """Some layers of another network, as a loss on feature maps reads them."""

    def maps(self, batch: Batch, sizes: Sequence[Size]) -> Sequence[Tensor]:
        """The layers' feature maps (B, C, h, w) for `batch`, detached, each as
        `methods.features.reduced` has it for a student's map of the size at its place in `sizes`.
        """


@dataclass(frozen=True)
class Peer:
    """The network `name` that trains on the same batches in this process (`fit_together`): its
    logits are those of its own step.
    """

    name: str

    def logits(self, batch: Batch) -> Tensor:
        """The peer's logits (B, K)."""
        return batch.logits[self.name]
