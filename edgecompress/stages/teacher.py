"""Stage `teacher`: the network to learn from, out of a checkpoint or trained here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import model_validator

from edgecompress.run.stage import Setup, StageResult
from edgecompress.stages.fields import FromScratch, recipe_only

if TYPE_CHECKING:
    from torch import nn

    from edgecompress.run.context import Context
    from edgecompress.run.state import State
    from edgecompress.train.fit import FitResult


class TeacherStage(FromScratch):
    """The network to learn from: that of a `checkpoint`, or a `model` by name, trained here (with 0
    epochs: as it is built).

    With a checkpoint, `model` only names again the user's own code that builds it
    (`file.py:factory`).
    """

    stage: Literal["teacher"] = "teacher"
    checkpoint: str | None = recipe_only(None)
    """model.safetensors of a run."""
    model: str | None = recipe_only(None)
    """A name, or the user's own code."""
    teaches = True

    @model_validator(mode="after")
    def _one_of_two(self) -> TeacherStage:
        if self.checkpoint is None and self.model is None:
            raise ValueError("give checkpoint (a trained teacher) or model (a name, trained here)")
        return self

    def time_share(self, state: State) -> float:
        """None where it is not trained here."""
        return super().time_share(state) if self.checkpoint is None else 0.0

    def inputs(self) -> tuple[Path, ...]:
        """Its checkpoint, or the file of weights."""
        return tuple(Path(name) for name in (self.checkpoint, self.weights) if name is not None)

    def own_code(self) -> frozenset[str]:
        """Its model."""
        return frozenset() if self.model is None else frozenset({self.model})

    def check(self, setup: Setup) -> Setup:
        """The teacher must know the classes of the data."""
        from edgecompress.stages.checkpoints import check_teacher

        return replace(setup, teacher=check_teacher(self, setup.recipe, setup.data))

    def run(self, context: Context, state: State) -> StageResult:
        """The network is the teacher of what follows, and the baseline."""
        from edgecompress.run.state import Network
        from edgecompress.stages.checkpoints import check_teacher
        from edgecompress.stages.common import validation_row
        from edgecompress.stages.train.work import baseline_of

        teacher = check_teacher(self, context.recipe, context.data)
        own = context.reading_as(teacher.preprocess)
        model, result = self._network(context, own)
        row = validation_row(own, f"teacher {teacher.source.name}", model)
        network = Network(model.cpu(), teacher.source, teacher.preprocess)
        state = replace(state, teacher=network, teacher_given=True)
        state = state.with_history("teacher", result).with_row(row)
        return StageResult(replace(state, baseline=baseline_of(own, model, row.accuracy)))

    def _network(self, context: Context, own: Context) -> tuple[nn.Module, FitResult | None]:
        """The network, and how it was trained here."""
        from edgecompress import checkpoint
        from edgecompress.stages.checkpoints import check_teacher
        from edgecompress.stages.train.work import trained

        source = check_teacher(self, context.recipe, context.data).source
        if self.checkpoint is None:
            return trained(own, self, source)
        named = source.name in {self.model, context.recipe.model}
        return checkpoint.load(Path(self.checkpoint), allow_code=source.name if named else None)[
            0
        ], None
