"""Verbs that are a recipe of one stage: train, shrink, profile, export, quantize."""

from __future__ import annotations

from typing import Annotated

import typer

from edgecompress.cli.checkpoints import (
    Checkpoint,
    Model,
    OwnCode,
    TensorsOf,
    named_checkpoint,
    source,
)
from edgecompress.cli.options import DATA, RUN, TIME, Given, options_of, verb
from edgecompress.errors import UsageError
from edgecompress.stages.export import ExportStage
from edgecompress.stages.load import LoadStage
from edgecompress.stages.profile import ProfileStage
from edgecompress.stages.qat import QatStage
from edgecompress.stages.quantize import QuantizeStage
from edgecompress.stages.shrink import ShrinkStage
from edgecompress.stages.train import TrainStage

FORMAT = options_of(QuantizeStage, "Number format")
FILE = options_of(ExportStage, "File")


@verb(DATA, options_of(TrainStage, "Training"), TIME, RUN)
def train(model: Model, given: Given) -> None:
    """Train a network, of which the best epoch is kept; the run's folder then holds
    model.safetensors, which distill and --teacher take.
    """
    given.launch("train", [given.draft(TrainStage)], model=model)


@verb(DATA, RUN)
def shrink(checkpoint: Checkpoint, given: Given, model: TensorsOf = None) -> None:
    """Make a network that somebody zeroed smaller, exactly; a table shows what stayed and why.

    Example: edgecompress shrink zeroed.pt --model vgg16
    """
    first, name = source(checkpoint, model)
    given.launch("shrink", [first, given.draft(ShrinkStage)], model=name, checkpoint=checkpoint)


@verb(options_of(ProfileStage, "Profile"), DATA, RUN)
def profile(checkpoint: Checkpoint, given: Given, model: TensorsOf = None) -> None:
    """Show what global magnitude pruning takes from each layer at 5 % to 95 %, and up to where the
    accuracy holds.
    """
    first, name = source(checkpoint, model)
    given.launch("profile", [first, given.draft(ProfileStage)], model=name, checkpoint=checkpoint)


@verb(FILE, DATA, RUN)
def export(checkpoint: Checkpoint, given: Given, model: OwnCode = None) -> None:
    """Write a checkpoint as ONNX (BatchNorm folded) and check the file against it."""
    path, name = named_checkpoint(checkpoint, model)
    stages = [given.draft(LoadStage, checkpoint=path), given.draft(ExportStage)]
    given.launch("export", stages, model=name, checkpoint=checkpoint)


QatEpochs = Annotated[
    int,
    typer.Option(
        "--qat-epochs",
        help="fine-tune on the grid of the format first, for so many epochs",
        min=0,
        rich_help_panel="Number format",
    ),
]


@verb(FORMAT, FILE, DATA, RUN)
def quantize(
    checkpoint: Checkpoint, given: Given, model: OwnCode = None, qat_epochs: QatEpochs = 0
) -> None:
    """Write a checkpoint as ONNX in fp32, fp16 and int8, measure each, and place the best as
    model.onnx.
    """
    path, name = named_checkpoint(checkpoint, model)
    form = given["quantize"]
    if qat_epochs and form in ("fp16", "none"):
        raise UsageError(
            f"--qat-epochs tunes for int8 and fewer bits: with --quantize {form} leave it out"
        )
    tuned = [given.draft(QatStage, epochs=qat_epochs)] if qat_epochs else []
    stages = [
        given.draft(LoadStage, checkpoint=path),
        *tuned,
        given.draft(ExportStage),
        given.draft(QuantizeStage),
    ]
    given.launch("quantize", stages, model=name, checkpoint=checkpoint)
