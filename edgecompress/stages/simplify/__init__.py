"""Stage `simplify`: the lossless steps, each verified on real images before the next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from edgecompress.run.stage import Stage, StageResult

if TYPE_CHECKING:
    from edgecompress.run.context import Context
    from edgecompress.run.state import State


class SimplifyStage(Stage):
    """The lossless steps: fold enlarging pools, drop channels whose output never changes."""

    stage: Literal["simplify"] = "simplify"
    teaches = True

    def run(self, context: Context, state: State) -> StageResult:
        """A copy of the simplified network is the teacher, where the recipe brings no other."""
        from edgecompress.stages.simplify.work import simplify

        return StageResult(simplify(context, state))
