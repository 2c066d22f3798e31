"""Stage `merge`: several networks become one of the same size."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from edgecompress.run.stage import Setup, StageResult
from edgecompress.stages.fields import Training, recipe_only

if TYPE_CHECKING:
    from edgecompress.run.context import Context
    from edgecompress.run.state import State


class MergeStage(Training):
    """Merge the networks of several checkpoints into one of the same size (or `width` times it),
    and fine-tune it.

    `heads` is `average`, or `separate` for networks of different classes: the recipe's data is then
    `A+B`, one set for each checkpoint, in their order, and the result has all their outputs side by
    side.

    `gates`: their wide network learns which channels it needs (`methods.gates`) for `epochs`, is
    cut to the most probably open ones, and trains on for `finetune_epochs`. `greedy`: layer by
    layer, on what the network computes for some training images (`methods.greedy`), `epochs` for
    each layer. `average` and `align` are baselines: the mean of the weights as they are, or after
    the channels of each network were matched to the first one's (Git Re-Basin, Ainsworth et al.
    2023).
    """

    stage: Literal["merge"] = "merge"
    has_one_length = False
    checkpoints: tuple[str, ...] = recipe_only(())
    """Two or more checkpoints of the same network."""
    train_parents: Annotated[int, Field(ge=2)] | None = recipe_only(None)
    """Instead of checkpoints: train so many networks of the recipe's kind first, for
    `parent_epochs` each.
    """
    parent_epochs: Annotated[int, Field(ge=1)] | None = recipe_only(None)
    """Epochs of each network that is trained first."""
    method: Literal["gates", "greedy", "average", "align"] = "gates"
    """gates or greedy; average and align are baselines."""
    heads: Literal["average", "separate"] = "average"
    """average, or separate for networks of different classes (--data A+B)."""
    hierarchical: bool = False
    """Merge in pairs, fine-tune, and merge the results again, instead of all at once."""
    width: Annotated[float, Field(gt=0)] = 1.0
    """Channels that the result keeps, as a multiple of one network's."""
    finetune_epochs: Annotated[int, Field(ge=0)] | None = None
    """Epochs after the cut; default: as many as --epochs."""
    draw: Literal["batch", "sample"] = "batch"
    """Draw gates once per batch or once per sample."""
    noise: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Width of the gates' uniform noise around its middle; 0 draws nothing."""
    gate_rate: Annotated[float, Field(gt=0)] | None = None
    """Learning rate of the gates over that of the weights; default: with the fitted schedule such
    that gates can decide within the run, else 10.
    """
    lambda_schedule: Literal["fitted", "source", "linear", "cosine", "constant"] = "fitted"
    """How the weight of the L0 loss grows over the epochs; greedy merging takes source for
    fitted.
    """
    lambda_start: Annotated[float, Field(gt=0)] = 0.01
    """Weight of the L0 loss in the first epoch."""
    lambda_scale: Annotated[float, Field(gt=0)] = 1.0
    """Factor on the weight of the L0 loss."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = recipe_only(0.0)
    """Share of each label that is spread over all classes."""
    require_better: bool = False
    """Exit 3 when the result is below its best parent."""
    teaches = True

    @property
    def _count(self) -> int:
        """How many networks are merged."""
        return self.train_parents or len(self.checkpoints)

    @model_validator(mode="after")
    def _about_the_networks(self) -> MergeStage:
        """Two or more, from one place; for pairs of pairs a power of two."""
        count = self._count
        if bool(self.checkpoints) == (self.train_parents is not None) or count < 2:
            raise ValueError(
                "give at least 2 checkpoints, or train_parents (a number of networks to "
                "train first)"
            )
        if self.parent_epochs is not None and self.train_parents is None:
            raise ValueError(
                "parent_epochs goes with train_parents: checkpoints are trained already"
            )
        if self.heads == "separate" and self.train_parents is not None:
            raise ValueError(
                "heads separate merges networks of different classes: train them first, and "
                "give checkpoints"
            )
        if self.hierarchical and count & (count - 1):
            raise ValueError(
                f"hierarchical merges pairs of pairs: give 2, 4, 8, ... checkpoints, not {count}"
            )
        return self

    @model_validator(mode="after")
    def _about_the_method(self) -> MergeStage:
        """It has all that is set, and learns where it must."""
        if self.method in ("gates", "greedy") and self.epochs == 0:
            raise ValueError(
                f"{self.method} learns nothing in 0 epochs: give epochs above 0, or method "
                "average or align"
            )
        foreign = {
            "gates": (),
            "greedy": ("draw", "noise"),
            "average": (
                "hierarchical",
                "width",
                "draw",
                "noise",
                "lambda_schedule",
                "lambda_scale",
                "gate_rate",
            ),
        }
        given = [
            n
            for n in foreign.get(self.method, foreign["average"])
            if getattr(self, n) != type(self).model_fields[n].default
        ]
        if given:
            raise ValueError(
                f"method {self.method} has no such gates: {', '.join(sorted(given))} apply "
                "to method gates"
            )
        if self.heads == "separate" and (self.hierarchical or self.method in ("average", "align")):
            raise ValueError(
                "heads separate keeps all outputs: merge all networks at once, by gates or greedy"
            )
        return self

    @model_validator(mode="after")
    def _about_the_width(self) -> MergeStage:
        """Networks that are merged together have no more channels than theirs."""
        count = self._count
        together = 2 if self.hierarchical else count
        if self.width > together:
            where = (
                f"the {count} networks"
                if together == count
                else "two networks, of which each merging of --hierarchical is,"
            )
            raise ValueError(
                f"width {self.width:g} is more than {where} have together: allowed is up to "
                f"{together}"
            )
        return self

    def checkpoint_files(self) -> tuple[Path, ...]:
        """Those of the networks to merge."""
        return tuple(Path(path) for path in self.checkpoints)

    def check(self, setup: Setup) -> Setup:
        """The networks must stack, and be of the recipe's model and data."""
        from edgecompress.stages.checkpoints import check_pair_stacks, check_parents

        if self.checkpoints:
            check_parents(list(self.checkpoint_files()), setup.recipe, setup.data, self.heads)
        else:
            check_pair_stacks(setup)
        return setup

    def run(self, context: Context, state: State) -> StageResult:
        """The merged network; its best parent is teacher and baseline."""
        from edgecompress.stages.merge.work import merge

        return merge(context, self, state)
