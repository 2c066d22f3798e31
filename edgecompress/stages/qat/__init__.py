"""Stage `qat`: fine-tune the network on the grid of its format."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from edgecompress.run.stage import StageResult
from edgecompress.stages.fields import Distilled, recipe_only

if TYPE_CHECKING:
    from edgecompress.run.context import Context
    from edgecompress.run.state import State


class QatStage(Distilled):
    """Fine-tune the network on the grid of its format (`methods.qat`): int8 for 2 epochs at a tenth
    of the usual rate, fewer bits as long as a training (8 epochs on large data), 2 bits after 4;
    stage `quantize` takes its scales.
    """

    stage: Literal["qat"] = "qat"
    has_one_length = False
    share_of_time = 4.0
    only_low_bits: bool = recipe_only(False)
    """Only where the file has weights of less than 8 bits."""

    def time_share(self, state: State) -> float:
        """None where only few bits need it, and the plan has none."""
        from edgecompress.formats import FORMATS

        low = state.plan is None or any(FORMATS[form].is_low for form in state.plan.formats)
        return super().time_share(state) if low or not self.only_low_bits else 0.0

    def run(self, context: Context, state: State) -> StageResult:
        """The tuned network, and the scales that it learned with."""
        from edgecompress.stages.qat.work import qat

        return StageResult(qat(context, self, state))
