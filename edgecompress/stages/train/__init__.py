"""Stage `train`: train the recipe's network on the labels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgecompress.run.stage import Setup, StageResult
from edgecompress.stages.fields import FromScratch

if TYPE_CHECKING:
    from edgecompress.run.context import Context
    from edgecompress.run.state import State


class TrainStage(FromScratch):
    """Train the recipe's network."""

    stage: Literal["train"] = "train"
    trains_one_network = True

    def usual_epochs(self, own: int | None, *, large: bool, small: bool | None) -> int | None:
        """Those of the network."""
        return own

    def inputs(self) -> tuple[Path, ...]:
        """The file of weights."""
        return () if self.weights is None else (Path(self.weights),)

    def check(self, setup: Setup) -> Setup:
        """The weights must fit the network."""
        if self.weights is not None:
            from edgecompress.models.weights import load_weights

            load_weights(setup.source, self.weights)
        return setup

    def run(self, context: Context, state: State) -> StageResult:
        """The trained network is the model and, where the recipe brings none, the baseline."""
        from edgecompress.stages.train.work import train

        return StageResult(train(context, self, state))
