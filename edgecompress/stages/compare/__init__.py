"""Stage `compare`: merging against other ways to spend the same epochs, several times each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from edgecompress.run.stage import Setup, StageResult
from edgecompress.stages.fields import Training, recipe_only

if TYPE_CHECKING:
    from edgecompress.run.context import Context
    from edgecompress.run.state import State


class CompareStage(Training):
    """Strategies under one budget of epochs, several times each: see `methods.compare`. `epochs`
    has no meaning here.
    """

    stage: Literal["compare"] = "compare"
    has_one_length = False
    budget: Annotated[int, Field(ge=6)] = 12
    """Epochs of each strategy; a multiple of 6."""
    repeats: Annotated[int, Field(ge=2)] = 3
    """Results of each strategy."""
    lambda_scale: Annotated[float, Field(gt=0)] = 1.0
    """Factor on the weight of the gates' L0 loss."""
    lambda_start: Annotated[float, Field(gt=0)] | None = recipe_only(None)
    """Weight of the L0 loss in the first epoch; null: 0.01, on the sine problem 0.05."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = recipe_only(0.0)
    """Share of each label that is spread over all classes."""

    @model_validator(mode="after")
    def _no_epochs(self) -> CompareStage:
        if self.budget % 6:
            raise ValueError(
                f"budget {self.budget} cannot be spent alike: strategies take thirds and "
                "sixths of it; give a multiple of 6"
            )
        if self.epochs is not None:
            raise ValueError(
                f"epochs {self.epochs}: a comparison has a budget of epochs for each "
                "strategy; set budget"
            )
        if self.patience is not None:
            raise ValueError(
                f"patience {self.patience} would end strategies before their budget: leave "
                "it out of a comparison"
            )
        return self

    def unlike_the_source(self) -> list[str]:
        """Names of given settings that the sine problem's networks do not have: they train as the
        source did.
        """
        theirs = {"stage", "budget", "repeats", "learning_rate", "batch_size"}
        theirs |= {"lambda_scale", "lambda_start"}
        return self.given(*(name for name in type(self).model_fields if name not in theirs))

    def check(self, setup: Setup) -> Setup:
        """The networks that are trained must stack."""
        from edgecompress.errors import UsageError
        from edgecompress.stages.checkpoints import check_pair_stacks

        if setup.data.name != "sine" or setup.source.name != "mlp":
            check_pair_stacks(setup)
        elif other := self.unlike_the_source():
            raise UsageError(
                f"{other[0]} {getattr(self, other[0])}: the sine problem's networks train as the "
                "source did; leave it out"
            )
        return setup

    def run(self, context: Context, state: State) -> StageResult:
        """The best merged network, and every strategy's results as a section."""
        from edgecompress.stages.compare.work import compare

        return StageResult(compare(context, self, state))
