"""Stage `prune`: remove channels for a budget, in steps, training after each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from edgecompress.run.stage import Scheduled, Setup, StageResult
from edgecompress.run.values import Amount, Share
from edgecompress.stages.fields import Criterion, Distilled, Names, recipe_only

if TYPE_CHECKING:
    from torch import nn

    from edgecompress.run.context import Context
    from edgecompress.run.state import State


class PruneStage(Distilled):
    """Remove channels in `steps`, each followed by distillation from the teacher (if there is one)
    or training.

    `auto` takes as many steps as keep each below a factor of four of what the budget counts.
    """

    stage: Literal["prune"] = "prune"
    trains_one_network = True
    learns_anew = True
    share_of_time = 3.0
    amount: Amount | None = None
    """50% of the parameters to remove, or what is left: 2Mparams, 10MMACs, 4MB (fp32 file);
    without it a plan's budgets hold.
    """
    scope: Literal["cost", "local", "global"] = "cost"
    """What competes: score per unit of cost over the network, each group by itself, or all
    groups.
    """
    layers: Names | None = None
    """Only the channels that these layers make: features.0,features.3."""
    steps: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """Cuts, with training after each; auto: none above a factor of four."""
    criterion: Criterion = "taylor"
    """How channels are scored."""
    score_batches: Annotated[int, Field(ge=1)] = recipe_only(8)
    """Training batches that Taylor scores are averaged over."""
    floor: Share = 0.02
    """Share of every group's channels that always stays."""
    round_to: Annotated[int, Field(ge=1)] = 1
    """Widths are multiples of this."""

    def usual_epochs(self, own: int | None, *, large: bool, small: bool | None) -> int | None:
        """Each of several short trainings."""
        return 2 if large else 1

    def time_share(self, state: State) -> float:
        """None where a plan was made, and needs no cut."""
        idle = self.amount is None and state.plan is not None and not state.plan.prune
        return 0.0 if idle else super().time_share(state)

    def scheduled(self) -> tuple[Scheduled, ...]:
        """A step each; with `auto` one stage, which asks for its steps."""
        if self.steps == "auto":
            return (Scheduled(self.stage, self),)
        values = self.model_dump(mode="json")
        steps = (PruneStep(**values, step=step) for step in range(1, self.steps + 1))
        return tuple(Scheduled(f"prune-{step.step}of{self.steps}", step) for step in steps)

    def check_network(self, setup: Setup, blank: nn.Module) -> None:
        """Something must be there to cut, the layers must exist, and the criterion must apply."""
        from edgecompress.stages.checkpoints import check_cuttable, check_layers

        if all(stage.stage != "plan" for stage in setup.recipe.stages):  # which may need no cut
            check_cuttable(blank, setup.data)
        check_layers(blank, setup.data, self.layers or (), self.criterion)

    def run(self, context: Context, state: State) -> StageResult:
        """Ask for as many steps as the way to the budget needs."""
        from edgecompress.stages.prune.work import in_steps

        return in_steps(context, self, state)


class PruneStep(PruneStage):
    """One step of `steps`. It stands in no recipe: `PruneStage` schedules it."""

    step: int
    """The number of the step, from 1."""

    def time_share(self, state: State) -> float:
        """Its part of what all steps have."""
        return super().time_share(state) / int(self.steps)

    def run(self, context: Context, state: State) -> StageResult:
        """The cut network, trained again."""
        from edgecompress.stages.prune.work import prune

        return prune(context, self, state)
