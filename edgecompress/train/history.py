"""One row an epoch: what `history.csv` and the complexity graph show."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class EpochRow:
    """One epoch. Losses are means over samples; `validation_accuracy` is 0..1; `params` those of
    the network trained.

    `cut` channels were removed after the training and before the validation of this epoch.
    """

    epoch: int
    train_loss: float
    validation_loss: float
    validation_accuracy: float
    learning_rate: float
    seconds: float
    params: int
    cut: int = 0

    def as_dict(self) -> dict[str, float | int]:
        """Column name to value, in column order."""
        return asdict(self)
