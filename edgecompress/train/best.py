"""Which epoch of a training was best, and its weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypedDict

from torch import Tensor, nn

from edgecompress.train.history import EpochRow


class BestState(TypedDict):
    """The resumable state of a `BestEpoch`. `key` is empty before the first eligible epoch."""

    epoch: int
    key: list[float]
    state: dict[str, Tensor]
    cuts: int


class BestEpoch:
    """The best eligible epoch so far: highest validation accuracy, then lowest validation loss.

    `epoch` is its number, 0 for the network before the training; `found` says whether any was
    eligible.
    """

    def __init__(self) -> None:
        self.epoch = 0
        self._key: tuple[float, float] | None = None
        self._model: nn.Module | None = None
        self._weights: dict[str, Tensor] = {}
        self._cuts = 0

    @property
    def found(self) -> bool:
        """Was any epoch eligible?"""
        return self._key is not None

    def update(
        self,
        model: nn.Module,
        row: EpochRow,
        eligible: Callable[[nn.Module], bool] | None,
        cuts: int,
    ) -> None:
        """Copy the weights of `model`, which has been cut `cuts` times, if its epoch is the best so
        far.
        """
        key = (row.validation_accuracy, -row.validation_loss)
        better = self._key is None or key > self._key
        if not better or (eligible is not None and not eligible(model)):
            return
        self.epoch = row.epoch
        self._key = key
        self._model = model
        self._weights = {k: v.detach().clone() for k, v in model.state_dict().items()}
        self._cuts = cuts

    def restored(self, last: nn.Module) -> nn.Module:
        """The network of the best epoch, its weights put back; `last` if no epoch was eligible."""
        if self._model is None:
            return last
        self._model.load_state_dict(self._weights)
        return self._model

    def state(self) -> BestState:
        """The state to resume from."""
        return {
            "epoch": self.epoch,
            "key": list(self._key or ()),
            "state": self._weights,
            "cuts": self._cuts,
        }

    def resume(self, state: BestState, models: Sequence[nn.Module]) -> None:
        """Restore `state`. `models` holds the network before its first cut and after each one."""
        self.epoch = state["epoch"]
        self._weights = state["state"]
        self._cuts = state["cuts"]
        if state["key"]:
            accuracy, negative_loss = state["key"]
            self._key = (accuracy, negative_loss)
            self._model = models[self._cuts]
