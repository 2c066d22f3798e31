"""Stage `profile`: what global magnitude pruning takes from each layer, and how far the accuracy
holds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from edgecompress.run.sections import ProfileSection
from edgecompress.run.stage import Stage, StageResult
from edgecompress.run.values import Share
from edgecompress.stages.fields import recipe_only

if TYPE_CHECKING:
    from torch import nn

    from edgecompress.run.context import Context
    from edgecompress.run.state import State


class ProfileStage(Stage):
    """The share that global magnitude pruning takes from each layer at each level, and the accuracy
    there; the network is not changed.
    """

    stage: Literal["profile"] = "profile"
    levels: tuple[Share, ...] = recipe_only(tuple(level / 20 for level in range(1, 20)))
    """Shares of all weights that are zeroed."""
    tolerance: Share = 0.01
    """Accuracy that may be lost while it still holds, absolute."""

    def run(self, context: Context, state: State) -> StageResult:
        """The profile is a section of the result; the network stays as it is."""
        from edgecompress.methods import sparsify
        from edgecompress.run.state import StageRow
        from edgecompress.stages.common import count, validation_accuracy
        from edgecompress.stages.scoring import on_validation

        model = state.need_model()
        done = iter(range(len(self.levels) + 2))

        def accuracy_of(network: nn.Module) -> float:
            context.reporter.step(next(done), len(self.levels) + 1, "profile")
            return validation_accuracy(context, network)

        profile = sparsify.profile(model, accuracy_of, self.levels, self.tolerance)
        section: ProfileSection = {
            "levels": list(profile.levels),
            "layers": {name: list(shares) for name, shares in profile.layers.items()},
            "accuracy": list(profile.accuracy),
            "unpruned": profile.unpruned,
            "tolerance": profile.tolerance,
            "holds_to": profile.holds_to,
        }
        if context.data.task.metric == "accuracy":
            section["n"] = len(context.data.validation)
        note = (
            f"accuracy holds up to {profile.holds_to:.0%} of the weights at zero (within "
            f"{profile.tolerance:.1%} of "
            f"{on_validation(context.data, profile.unpruned)})"
        )
        context.reporter.note(note)
        row = StageRow("profile", profile.unpruned, count(model), note=note)
        return StageResult(state.with_section("profile", section).with_row(row))
