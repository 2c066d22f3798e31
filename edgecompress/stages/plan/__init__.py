"""Stage `plan`: choose the number format and the budgets before a channel is touched."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from edgecompress.formats import FORMATS, named
from edgecompress.run.stage import Setup, Stage, StageResult, Strict
from edgecompress.run.values import Count, Seconds, Share, Size
from edgecompress.stages.fields import Quantize, flag, recipe_only

if TYPE_CHECKING:
    from torch import nn

    from edgecompress.run.context import Context
    from edgecompress.run.state import SizePlan, State

GRAPH_BYTES, GRAPH_SHARE = 20_000, 1.1
"""What a file takes besides its weights, with room to spare."""


class Targets(Strict):
    """What the result must meet; several must all hold."""

    bytes: Size | None = flag("--target", None)
    """Size of the file: 4MB, 250KiB."""
    macs: Count | None = flag("--target-macs", None)
    """Multiply-accumulates per sample: 10M."""
    latency: Seconds | None = flag("--target-latency", None)
    """p50 at batch 1 on this machine: 5ms."""
    max_drop: Share | None = None
    """Accuracy that may be lost, absolute: 1%; given alone: find the smallest file."""


class PlanStage(Stage):
    """Choose the number format and the budgets for `targets`."""

    stage: Literal["plan"] = "plan"
    targets: Targets = recipe_only()
    """bytes, macs, latency, max_drop."""
    quantize: Quantize = "auto"
    """Number format of the file."""
    floor: Share = 0.02
    """Share of every group's channels that always stays."""
    round_to: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """Widths are multiples of this; auto: 8, exact where 8 leaves over 3 % free."""

    def check_network(self, setup: Setup, blank: nn.Module) -> None:
        """It must run without the values of an image; where the targets ask for cuts, something
        must be there to cut.
        """
        from edgecompress.core.proof import trace
        from edgecompress.stages.checkpoints import example_of, uncuttable

        graph = trace(blank, example_of(setup.data))
        if graph.groups:
            return
        weights = sum(parameter.numel() for parameter in blank.parameters())
        competes = any(stage.stage == "contest" for stage in setup.recipe.stages)
        bits = 2 if self.quantize == "auto" and competes else FORMATS[named(self.quantize)].bits
        bits = 2 if self.quantize == "mixed" else bits
        limits = (
            (self.targets.bytes, weights * bits // 8),
            (self.targets.macs, sum(graph.macs.values())),
        )
        if any(limit is not None and limit < cost for limit, cost in limits):
            raise uncuttable(blank, graph)

    def foretold(self, network: nn.Module) -> SizePlan | None:
        """The plan for `network` where it is plain beforehand: all weights fit, nothing is cut."""
        from edgecompress.run.state import SizePlan

        targets, form = self.targets, FORMATS[named(self.quantize)]
        weights = sum(parameter.numel() for parameter in network.parameters())
        if targets.macs is not None or targets.latency is not None or targets.bytes is None:
            return None
        if GRAPH_BYTES + GRAPH_SHARE * weights * form.bits / 8 > targets.bytes:
            return None
        return SizePlan(prune=False, formats=(form.name,))

    def run(self, context: Context, state: State) -> StageResult:
        """The state has the plan: formats, budgets, whether to prune, and why."""
        from edgecompress.stages.plan.work import plan

        return StageResult(plan(context, self, state))
