"""One row per epoch: what `history.csv` and the complexity graph show."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class EpochRow:
    """One epoch. Losses are means over samples; `validation_accuracy` is 0..1; `learning_rate` is
    that of the last step.

    `cut` channels were removed between the training and the validation of this epoch; `params`
    counts the parameters before that cut.
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
