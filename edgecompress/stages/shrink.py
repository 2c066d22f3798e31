"""Stage `shrink`: make a zeroed network smaller where that is exact."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from edgecompress.run.stage import Stage, StageResult

if TYPE_CHECKING:
    from edgecompress.run.context import Context
    from edgecompress.run.state import State


class ShrinkStage(Stage):
    """Remove channels that never change or are never read: a zeroed network becomes smaller, and
    computes the same.
    """

    stage: Literal["shrink"] = "shrink"

    def run(self, context: Context, state: State) -> StageResult:
        """The table of constant channels tells what stayed, and why."""
        from edgecompress.core.constants import without_masks
        from edgecompress.core.proof import trace
        from edgecompress.stages.simplify.work import drop_constants

        plain = without_masks(state.need_model())
        before = {g.name: g.size for g in trace(plain, context.example).groups}
        state = drop_constants(context, state)
        now = {g.name: g.size for g in trace(state.need_model(), context.example).groups}
        if not any(row["removed"] for row in state.constant_channels):
            context.reporter.note("no channel is constant or unread: nothing was removed")
        widths = {name: (size, now.get(name, size)) for name, size in before.items()}
        return StageResult(replace(state, widths=widths))
