"""Stage `qat`: fine-tune the network on the int8 grid."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from edgecompress.run.stage import StageResult
from edgecompress.stages.fields import Distilled

if TYPE_CHECKING:
    from edgecompress.run.context import Context
    from edgecompress.run.state import State


class QatStage(Distilled):
    """Fine-tune the network on the int8 grid (`methods.qat`), at a tenth of the usual rate; stage
    `quantize` takes its scales.
    """

    stage: Literal["qat"] = "qat"

    def run(self, context: Context, state: State) -> StageResult:
        """The tuned network, and the scales that it learned with."""
        from edgecompress.stages.qat.work import qat

        return StageResult(qat(context, self, state))
