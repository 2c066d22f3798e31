"""Stage `measure`: the final figures, on the test split."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from edgecompress.run.stage import Stage, StageResult
from edgecompress.stages.fields import recipe_only

if TYPE_CHECKING:
    from edgecompress.run.context import Context
    from edgecompress.run.state import State


class MeasureStage(Stage):
    """Read the test split once, and measure latency and cost of the file that ships."""

    stage: Literal["measure"] = "measure"
    samples: Annotated[int, Field(ge=20)] = recipe_only(200)
    """Runs that a latency is measured over."""
    single_process = True

    def run(self, context: Context, state: State) -> StageResult:
        """The figures of teacher and student, and the targets that the file misses."""
        from edgecompress.stages.measure.work import measure

        return measure(context, self, state)
