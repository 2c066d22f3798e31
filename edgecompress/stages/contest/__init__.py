"""Stage `contest`: few channels in 8 bits, or more of them in 4 or 2?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from edgecompress.run.stage import StageResult
from edgecompress.stages.fields import Criterion, Distilled

if TYPE_CHECKING:
    from edgecompress.run.context import Context
    from edgecompress.run.state import State


class ContestStage(Distilled):
    """Cut and train the network for each format that the plan lets compete, shortly, and keep the
    plan of the most accurate: half of them go on with twice the epochs, until one is left
    (successive halving; Jamieson and Talwalkar 2016).
    """

    stage: Literal["contest"] = "contest"
    has_one_length = False
    share_of_time = 2.0
    criterion: Criterion = "taylor"
    """How channels are scored."""

    def time_share(self, state: State) -> float:
        """None where nothing competes."""
        idle = state.plan is not None and not state.plan.contenders
        return 0.0 if idle else super().time_share(state)

    def run(self, context: Context, state: State) -> StageResult:
        """The plan is that of the winner; nothing changes where nothing competes."""
        from edgecompress.stages.contest.work import contest

        return StageResult(contest(context, self, state))
