"""Stage `quantize`: make the smaller number formats, measure them, choose what ships."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from edgecompress.errors import UsageError
from edgecompress.formats import LOW, bits_by_layer, named
from edgecompress.run.stage import Setup, Stage, StageResult
from edgecompress.run.values import Share
from edgecompress.stages.fields import Processor, Quantize, flag, recipe_only

if TYPE_CHECKING:
    from torch import nn

    from edgecompress.run.context import Context
    from edgecompress.run.state import State


class QuantizeStage(Stage):
    """Make the smaller number formats, measure them, and choose what ships."""

    stage: Literal["quantize"] = "quantize"
    quantize: Quantize = "auto"
    """Number format of the file."""
    calibration_images: Annotated[int, Field(ge=1)] = 256
    """Training images that set the ranges of activations."""
    method: Literal["minmax", "entropy", "percentile"] = flag("--calibration", "minmax")
    """How the ranges are chosen."""
    cpu: Processor = "any"
    """Where int8 runs: any and no-vnni give weights 7 bits, which never saturate; vnni and arm-dot
    8, for processors with an int8 dot product only.
    """
    max_int8_loss: Share = recipe_only(0.01)
    """Validation accuracy that int8 may lose against fp32, absolute, before fp16 is planned."""
    max_drop: Share | None = None
    """Leave the most sensitive layers in float until int8 loses at most this accuracy, absolute:
    0.5%.
    """
    sensitivity: bool = False
    """Measure what each layer costs when it alone is quantized (--max-drop does too)."""
    strict: bool = False
    """Exit 3 when a convolution or linear layer stays in float, or unpacks its weights at each
    run.
    """
    single_process = True

    @model_validator(mode="after")
    def _about_int8(self) -> QuantizeStage:
        given = self.given("method", "cpu", "max_drop", "sensitivity", "strict")
        if self.quantize in ("fp16", "none") and given:
            raise ValueError(
                f"{', '.join(given)} say how int8 is made: with quantize {self.quantize} "
                "leave them out"
            )
        return self

    def check(self, setup: Setup) -> Setup:
        """Mixed bits are assigned where the network is trained for them."""
        tuned = any(stage.stage == "qat" for stage in setup.recipe.stages)
        if self.quantize == "mixed" and not tuned:
            raise UsageError(
                "--quantize mixed chooses bits where the network is trained for them: give "
                "--qat-epochs, or a stage qat before quantize"
            )
        return setup

    def check_network(self, setup: Setup, blank: nn.Module) -> None:
        """A format of few bits needs a layer that has them: the first and the last keep 8."""
        form = named(self.quantize)
        if form not in LOW:
            return
        from edgecompress.core.proof import trace
        from edgecompress.stages.checkpoints import example_of

        layers = [*trace(blank, example_of(setup.data)).output_shapes]
        if all(width >= 8 for width in bits_by_layer(form, layers).values()):
            raise UsageError(
                f"--quantize {self.quantize}: {setup.source.name} has {len(layers)} layer(s), and "
                "the first and the last keep 8 bits: give int8, or mixed"
            )

    def run(self, context: Context, state: State) -> StageResult:
        """`model.onnx` stands in the run directory, or fp16 is planned from the start."""
        from edgecompress.stages.quantize.work import quantize

        return quantize(context, self, state)
