"""Stage `gradual`: train and prune at once; the network becomes smaller between epochs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from edgecompress.run.stage import Setup, StageResult
from edgecompress.run.values import Amount, Share
from edgecompress.stages.fields import Criterion, Distilled, Epochs, Names, recipe_only

if TYPE_CHECKING:
    from torch import nn

    from edgecompress.run.context import Context
    from edgecompress.run.state import State


class GradualStage(Distilled):
    """Train and prune at once: after some epochs channels go, the network is rebuilt smaller, and
    training continues.

    With `amount`, `shares` says how the layers share it: `static` (the same share of each),
    `dynamic` (what global magnitude pruning would take from each), or the share of channels that
    each named layer loses in the end. The epoch chosen is the best one that meets the amount.
    """

    stage: Literal["gradual"] = "gradual"
    trains_one_network = True
    amount: Amount | None = None
    """50% of the parameters to remove, or what is left: 2Mparams, 10MMACs, 4MB (fp32 file)."""
    shares: Literal["static", "dynamic"] | dict[str, Share] = "static"
    """With a schedule: static, or dynamic (from the sparsity profile)."""
    step: Share = 0.1
    """With a schedule: share of channels that one cut removes."""
    schedule: Epochs = "early"
    """Cut while training: early, middle, late, or the epochs 3,5,7."""
    scope: Literal["local", "global"] = "local"
    """What competes: the channels of each group by itself, or of all groups."""
    layers: Names | None = None
    """Only the channels that these layers make: features.0,features.3."""
    criterion: Criterion = "l1"
    """How channels are scored."""
    score_batches: Annotated[int, Field(ge=1)] = recipe_only(8)
    """Training batches that Taylor scores are averaged over."""
    floor: Share = 0.02
    """Share of every group's channels that always stays."""
    control: bool = recipe_only(False)
    """Train the same network once more without cuts, for the comparison in the report."""

    def usual_epochs(self, own: int | None, *, large: bool, small: bool | None) -> int | None:
        """Those of the network."""
        return own

    @model_validator(mode="after")
    def _amount_or_shares(self) -> GradualStage:
        if (self.amount is None) == isinstance(self.shares, str):
            raise ValueError(
                "give amount with shares static or dynamic, or shares for named layers without "
                "amount"
            )
        if not isinstance(self.schedule, str) and self.epochs is not None:
            wrong = [epoch for epoch in self.schedule if not 1 <= epoch <= self.epochs]
            if wrong or not self.schedule:
                raise ValueError(
                    f"schedule names epoch {wrong[0] if wrong else 'none'}: allowed are "
                    f"1..{self.epochs}"
                )
        return self

    def check_network(self, setup: Setup, blank: nn.Module) -> None:
        """Something must be there to cut, the layers must exist, and the criterion must apply."""
        from edgecompress.stages.checkpoints import check_cuttable, check_layers

        check_cuttable(blank, setup.data)
        shared = () if isinstance(self.shares, str) else tuple(self.shares)
        check_layers(blank, setup.data, (*(self.layers or ()), *shared), self.criterion)

    def run(self, context: Context, state: State) -> StageResult:
        """The network that was cut while it trained."""
        from edgecompress.stages.gradual.work import gradual

        return gradual(context, self, state)
