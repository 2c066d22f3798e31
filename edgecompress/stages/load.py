"""Stage `load`: take the network of a checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgecompress.run.stage import Setup, Stage, StageResult
from edgecompress.stages.fields import recipe_only

if TYPE_CHECKING:
    from edgecompress.run.context import Context
    from edgecompress.run.state import State


class LoadStage(Stage):
    """Take a network from a checkpoint; it is the baseline too, where the recipe brings no
    teacher.
    """

    stage: Literal["load"] = "load"
    checkpoint: str = recipe_only()
    """model.safetensors of a run."""

    def checkpoint_files(self) -> tuple[Path, ...]:
        """The one that it loads."""
        return (Path(self.checkpoint),)

    def check(self, setup: Setup) -> Setup:
        """The checkpoint must be of the recipe's model and data."""
        from edgecompress.stages.checkpoints import check_checkpoint

        source = check_checkpoint(Path(self.checkpoint), setup.recipe, setup.data)
        return replace(setup, source=source)

    def run(self, context: Context, state: State) -> StageResult:
        """The loaded network is the model and, where the recipe brings none, the baseline."""
        from edgecompress import checkpoint
        from edgecompress.run.state import Network
        from edgecompress.stages.common import validation_row
        from edgecompress.stages.train.work import with_baseline

        model, manifest = checkpoint.load(Path(self.checkpoint), allow_code=context.recipe.model)
        row = validation_row(context, "load", model)
        state = replace(state, model=Network(model.cpu(), manifest.model)).with_row(row)
        return StageResult(with_baseline(context, state))
