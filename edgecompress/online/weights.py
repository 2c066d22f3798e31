"""A network's weights as they travel: before each epoch of its training (García González 2022,
figure 2.16).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from edgecompress.train.fit import Kept, Onlooker


def packed_weights(model: nn.Module) -> bytes:
    """The state dict as safetensors."""
    from safetensors.torch import save

    return bytes(save({key: value.contiguous() for key, value in model.state_dict().items()}))


class EpochWeights(Onlooker):
    """A `Companion` that offers the network's weights as they are before each epoch."""

    def __init__(self, offer: Callable[[int, bytes], None]) -> None:
        self.offer, self.epoch, self.weights, self._taken = offer, 0, b"", False

    def attach(self, model: nn.Module) -> None:
        """An epoch begins, or goes on: then its weights are those that were offered for it."""
        if not self._taken:
            self.epoch, self.weights = self.epoch + 1, packed_weights(model)
        self._taken = False
        self.offer(self.epoch, self.weights)

    def kept(self) -> Kept:
        """The weights of the epoch that is under way."""
        return {
            "epoch": self.epoch,
            "weights": torch.frombuffer(bytearray(self.weights), dtype=torch.uint8),
        }

    def take(self, kept: Kept) -> None:
        """Offer them again."""
        self.epoch, self.weights, self._taken = (
            kept["epoch"],
            kept["weights"].numpy().tobytes(),
            True,
        )
