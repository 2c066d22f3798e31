"""Stage `search`: the smallest file that keeps the accuracy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from edgecompress.run.stage import Setup, StageResult
from edgecompress.run.values import Share
from edgecompress.stages.fields import Criterion, Quantize, Training, recipe_only

if TYPE_CHECKING:
    from torch import nn

    from edgecompress.run.context import Context
    from edgecompress.run.state import State


class SearchStage(Training):
    """Find the smallest file whose accuracy is within `max_drop` of the teacher's: halve, distil,
    measure, then refine.
    """

    stage: Literal["search"] = "search"
    trains_one_network = True
    max_drop: Share
    """Accuracy that may be lost, absolute: 1%."""
    quantize: Quantize = "auto"
    """Number format of the file."""
    refine: Annotated[int, Field(ge=0)] = recipe_only(2)
    """Rounds between the last size that kept the accuracy and the first that lost it."""
    criterion: Criterion = "taylor"
    """How channels are scored."""
    floor: Share = 0.02
    """Share of every group's channels that always stays."""
    round_to: Annotated[int, Field(ge=1)] = 1
    """Widths are multiples of this."""

    def check_network(self, setup: Setup, blank: nn.Module) -> None:
        """The criterion must apply."""
        from edgecompress.stages.checkpoints import check_layers

        check_layers(blank, setup.data, (), self.criterion)

    def run(self, context: Context, state: State) -> StageResult:
        """The smallest network that kept its accuracy, and a plan that names its format."""
        from edgecompress.stages.search.work import search

        return StageResult(search(context, self, state))
