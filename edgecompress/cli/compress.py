"""`edgecompress compress MODEL --target 4MB`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgecompress.cli.console import (
    BatchSize,
    Data,
    Debug,
    Device,
    DryRun,
    Epochs,
    ExistOk,
    ImageSize,
    Json,
    Output,
    Quiet,
    Rate,
    Resume,
    Seed,
    SkipBad,
    Threads,
    Verbose,
    origins,
)

PLACES = {
    "model": "model",
    "data": "data",
    "seed": "seed",
    "device": "device",
    "threads": "threads",
    "image_size": "image_size",
    "skip_bad": "skip_bad",
    "epochs": "stages.0.epochs",
    "weights": "stages.0.weights",
    "teacher": "stages.0.checkpoint",
    "learning_rate": "stages.0.learning_rate",
    "batch_size": "stages.0.batch_size",
    "target": "stages.2.targets.bytes",
    "target_macs": "stages.2.targets.macs",
    "target_latency": "stages.2.targets.latency",
    "max_drop": "stages.2.targets.max_drop",
    "quantize": "stages.2.quantize",
    "floor": "stages.2.floor",
    "round_to": "stages.2.round_to",
    "steps": "stages.3.steps",
    "criterion": "stages.3.criterion",
    "distill_epochs": "stages.4.epochs",
}
"""Where each option stands in the recipe."""


def compress(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(help="a name (edgecompress models), pkg.mod:factory or file.py:factory")
    ],
    target: Annotated[
        str | None, typer.Option("--target", help="size of the file: 4MB, 250KiB")
    ] = None,
    target_macs: Annotated[
        str | None, typer.Option("--target-macs", help="multiply-accumulates a sample: 10M")
    ] = None,
    target_latency: Annotated[
        str | None, typer.Option("--target-latency", help="p50 at batch 1, here: 5ms")
    ] = None,
    max_drop: Annotated[
        str | None,
        typer.Option(
            "--max-drop", help="accuracy it may lose, absolute: 1%; alone: the smallest file"
        ),
    ] = None,
    quantize: Annotated[str, typer.Option("--quantize", help="auto, int8, fp16 or none")] = "auto",
    data: Data = "digits",
    teacher: Annotated[
        str | None, typer.Option("--teacher", help="checkpoint of a trained network")
    ] = None,
    weights: Annotated[
        str | None, typer.Option("--weights", help="imagenet, or a file of tensors to start from")
    ] = None,
    epochs: Epochs = None,
    distill_epochs: Annotated[
        int | None, typer.Option("--distill-epochs", help="epochs after the last cut", min=1)
    ] = None,
    steps: Annotated[
        str,
        typer.Option("--steps", help="pruning steps; auto: no step larger than a factor of four"),
    ] = "auto",
    criterion: Annotated[
        str, typer.Option("--criterion", help="l1, l2, bn, taylor or random")
    ] = "taylor",
    floor: Annotated[
        str, typer.Option("--floor", help="share of a group that always stays")
    ] = "0.02",
    round_to: Annotated[
        str,
        typer.Option(
            "--round-to",
            help="widths are multiples of this; auto: 8, exact where 8 leaves over 3 % free",
        ),
    ] = "auto",
    learning_rate: Rate = None,
    batch_size: BatchSize = None,
    image_size: ImageSize = None,
    skip_bad: SkipBad = False,
    seed: Seed = 0,
    device: Device = "auto",
    threads: Threads = None,
    output: Output = None,
    resume: Resume = False,
    exist_ok: ExistOk = False,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
    debug: Debug = False,
    dry_run: DryRun = False,
) -> None:
    """Train (or take) a network, make it fit the targets, and prove what it lost.

    Example: edgecompress compress vgg16 --target 4MB
    """
    from edgecompress import units
    from edgecompress.cli.launch import launch
    from edgecompress.compress import recipe_for

    targets = {
        "bytes": None if target is None else f"{units.parse_size(target)}B",
        "macs": None if target_macs is None else units.parse_count(target_macs),
        "latency": None if target_latency is None else units.parse_duration(target_latency),
        "max_drop": None if max_drop is None else units.parse_share(max_drop),
    }
    recipe = recipe_for(
        model,
        targets=targets,
        quantize=quantize,
        data=data,
        teacher=_path(teacher),
        weights=weights,
        epochs=epochs,
        distill_epochs=distill_epochs,
        steps=_number(steps),
        criterion=criterion,
        floor=units.parse_share(floor),
        round_to=_number(round_to),
        learning_rate=learning_rate,
        batch_size=batch_size,
        seed=seed,
        device=device,
        threads=threads,
        image_size=image_size,
        skip_bad=skip_bad,
    )
    launch(
        recipe,
        origins(context, PLACES),
        output=output,
        resume=resume,
        exist_ok=exist_ok,
        as_json=as_json,
        verbose=verbose,
        quiet=quiet,
        dry_run=dry_run,
    )


def _number(text: str) -> int | str:
    """An option that is a number or a word; the recipe refuses other words."""
    return int(text) if text.isdigit() else text


def _path(checkpoint: str | None) -> str | None:
    """A run directory stands for the checkpoint in it."""
    if checkpoint is not None and (Path(checkpoint) / "model.safetensors").is_file():
        return str(Path(checkpoint) / "model.safetensors")
    return checkpoint
