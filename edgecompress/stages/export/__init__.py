"""Stage `export`: the fp32 ONNX file, checked against the network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import model_validator

from edgecompress.errors import UsageError
from edgecompress.run.stage import Setup, Stage, StageResult

if TYPE_CHECKING:
    from edgecompress.run.context import Context
    from edgecompress.run.state import State


class ExportStage(Stage):
    """Write `model-fp32.onnx` and check it against the network.

    With `embed_preprocess` what ships reads decoded images, uint8 (batch, height, width, C) of any
    size, and resizes and normalises them itself.
    """

    stage: Literal["export"] = "export"
    embed_preprocess: bool = False
    """The file reads decoded images, uint8 of any size, and resizes and normalises them itself."""
    min_ort: str | None = None
    """Oldest ONNX Runtime that must load the file: 1.14."""
    single_process = True

    @model_validator(mode="after")
    def _known_runtime(self) -> ExportStage:
        if self.min_ort is None:
            return self
        from edgecompress.export.portable import limits, parse_runtime

        try:
            opset, _ = limits(parse_runtime(self.min_ort))
        except UsageError as error:
            raise ValueError(str(error)) from error
        if self.embed_preprocess and opset < 18:
            raise ValueError(
                f"embed_preprocess needs opset 18, ONNX Runtime {self.min_ort} loads "
                f"{opset}: give min_ort 1.14 or later"
            )
        return self

    def check(self, setup: Setup) -> Setup:
        """Only images can be read as they are."""
        from edgecompress.data.preprocess import PIXELS

        if self.embed_preprocess and setup.data.preprocess.scale != PIXELS:
            raise UsageError(
                f"data '{setup.recipe.data}' holds no images: leave --embed-preprocess out"
            )
        return setup

    def run(self, context: Context, state: State) -> StageResult:
        """`model.safetensors` and `model-fp32.onnx` stand in the run directory."""
        from edgecompress.stages.export.work import export

        return StageResult(export(context, state))
