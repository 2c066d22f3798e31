"""Verbs that are a recipe of one or two stages: train, shrink, profile, export, quantize."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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
    Normalize,
    Output,
    Quiet,
    Rate,
    Resize,
    Resume,
    Seed,
    SkipBad,
    Threads,
    Verbose,
    origins,
)

Checkpoint = Annotated[Path, typer.Argument(help="model.safetensors, or the folder of a run")]
Model = Annotated[
    str | None,
    typer.Option(
        "--model", help="for a file of tensors (.pt, .safetensors): the network they belong to"
    ),
]
OwnCode = Annotated[
    str | None,
    typer.Option(
        "--model", help="your own code (file.py:factory) that builds the network, named again"
    ),
]
Quantize = Annotated[str, typer.Option("--quantize", help="auto, int8, fp16 or none")]
Embed = Annotated[
    bool,
    typer.Option("--embed-preprocess", help="the file reads decoded images, uint8 of any size"),
]
MinOrt = Annotated[
    str | None, typer.Option("--min-ort", help="oldest ONNX Runtime that must load the file: 1.14")
]


def checkpoint_in(path: Path) -> str:
    """Path of a checkpoint, or of the one in a run's folder."""
    return str(path / "model.safetensors" if path.is_dir() else path)


def named_checkpoint(path: Path, model: str | None) -> tuple[str, str]:
    """(path, model name) of a checkpoint, or of the one in a run's folder.

    Raises `UsageError` when it is built by the user's own code and `model` does not name that
    again, or when it names another model.
    """
    from edgecompress.checkpoint import read_manifest
    from edgecompress.errors import UsageError
    from edgecompress.models.registry import runs_user_code

    inner = checkpoint_in(path)
    name = read_manifest(Path(inner)).model.name
    if runs_user_code(name) and model != name:
        raise UsageError(
            f"'{inner}' is built by your own code '{name}': name it again to run it: --model {name}"
        )
    if model is not None and model != name:
        raise UsageError(
            f"checkpoint '{inner}' holds a {name}, not a {model}: leave --model out, or name {name}"
        )
    return inner, name


def _ours(path: Path) -> bool:
    """Is the file at `path` (or in that run's folder) a checkpoint with a manifest?"""
    from edgecompress.checkpoint import read_manifest
    from edgecompress.errors import UsageError

    try:
        read_manifest(Path(checkpoint_in(path)))
    except UsageError:
        return False
    return True


def source(path: Path, model: str | None) -> tuple[dict[str, Any], str]:
    """(first stage, model name) for a checkpoint of ours, or, with `model`, for a file of tensors
    that somebody else saved.
    """
    if model is not None and not _ours(path):
        return {"stage": "train", "epochs": 0, "weights": str(path)}, model
    inner, name = named_checkpoint(path, model)
    return {"stage": "load", "checkpoint": inner}, name


def go(
    context: typer.Context, command: str, stages: list[dict[str, Any]], values: dict[str, Any]
) -> None:
    """Check and run a recipe of `stages`; `values` are the verb's options by name."""
    from edgecompress.cli.launch import launch
    from edgecompress.recipe import validate

    every = (
        "model",
        "data",
        "seed",
        "device",
        "threads",
        "image_size",
        "resize",
        "normalize",
        "skip_bad",
    )
    names = [name for name in every if name in values]
    recipe = validate(
        {"command": command, "stages": stages, **{n: values[n] for n in names}}, command
    )
    launch(
        recipe,
        origins(context, {n: n for n in names}),
        output=values["output"],
        resume=values["resume"],
        exist_ok=values["exist_ok"],
        as_json=values["as_json"],
        verbose=values["verbose"],
        quiet=values["quiet"],
        dry_run=values["dry_run"],
    )


def train(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(help="a name (edgecompress models), pkg.mod:factory or file.py:factory")
    ],
    data: Data = "digits",
    weights: Annotated[
        str | None, typer.Option("--weights", help="imagenet, or a file of tensors to start from")
    ] = None,
    train_last: Annotated[
        int | None,
        typer.Option(
            "--train-last",
            help="transfer learning: only the last so many convolutions and what follows",
            min=0,
        ),
    ] = None,
    epochs: Epochs = None,
    learning_rate: Rate = None,
    batch_size: BatchSize = None,
    optimizer: Annotated[str, typer.Option("--optimizer", help="adamw, adam or sgd")] = "adamw",
    patience: Annotated[
        int | None, typer.Option("--patience", help="stop after so many idle epochs", min=1)
    ] = None,
    precision: Annotated[str, typer.Option("--precision", help="auto, fp32 or bf16")] = "auto",
    image_size: ImageSize = None,
    resize: Resize = None,
    normalize: Normalize = "data",
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
    """Train a network, of which the best epoch is kept; the run's folder then holds
    model.safetensors, which distill and --teacher take.
    """
    stage = {
        "stage": "train",
        "epochs": epochs,
        "weights": weights,
        "train_last": train_last,
        "learning_rate": learning_rate,
        "batch_size": batch_size,
        "optimizer": optimizer,
        "patience": patience,
        "precision": precision,
    }
    go(context, "train", [stage], dict(locals()))


def shrink(
    context: typer.Context,
    checkpoint: Checkpoint,
    model: Model = None,
    data: Data = "digits",
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
    """Make a network that somebody zeroed smaller, exactly; a table says what stayed and why.

    Example: edgecompress shrink zeroed.pt --model vgg16
    """
    first, name = source(checkpoint, model)
    go(context, "shrink", [first, {"stage": "shrink"}], {**locals(), "model": name})


def profile(
    context: typer.Context,
    checkpoint: Checkpoint,
    model: Model = None,
    tolerance: Annotated[
        str,
        typer.Option(
            "--tolerance", help="accuracy that may be lost while it still holds, absolute"
        ),
    ] = "1%",
    data: Data = "digits",
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
    """Show what global magnitude pruning takes from each layer at 5 % to 95 %, and up to where the
    accuracy holds.
    """
    from edgecompress.units import parse_share

    first, name = source(checkpoint, model)
    stages = [first, {"stage": "profile", "tolerance": parse_share(tolerance)}]
    go(context, "profile", stages, {**locals(), "model": name})


def export(
    context: typer.Context,
    checkpoint: Checkpoint,
    embed_preprocess: Embed = False,
    min_ort: MinOrt = None,
    model: OwnCode = None,
    data: Data = "digits",
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
    """Write a checkpoint as ONNX (BatchNorm folded) and check the file against it."""
    path, name = named_checkpoint(checkpoint, model)
    stages: list[dict[str, Any]] = [
        {"stage": "load", "checkpoint": path},
        {"stage": "export", "embed_preprocess": embed_preprocess, "min_ort": min_ort},
    ]
    go(context, "export", stages, {**locals(), "model": name})


def quantize(
    context: typer.Context,
    checkpoint: Checkpoint,
    quantize: Quantize = "auto",
    calibration_images: Annotated[
        int, typer.Option("--calibration-images", help="training images that set the ranges", min=1)
    ] = 256,
    method: Annotated[
        str, typer.Option("--calibration", help="minmax, entropy or percentile")
    ] = "minmax",
    max_drop: Annotated[
        str | None,
        typer.Option(
            "--max-drop",
            help="leave layers in float until int8 loses at most this accuracy, absolute: 0.5%",
        ),
    ] = None,
    sensitivity: Annotated[
        bool, typer.Option("--sensitivity", help="measure what each layer alone costs in int8")
    ] = False,
    qat_epochs: Annotated[
        int, typer.Option("--qat-epochs", help="fine-tune on the int8 grid first", min=0)
    ] = 0,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="exit 3 when a convolution or linear layer stays in float"),
    ] = False,
    embed_preprocess: Embed = False,
    min_ort: MinOrt = None,
    model: OwnCode = None,
    data: Data = "digits",
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
    """Write a checkpoint as ONNX in fp32, fp16 and int8, measure each, and place the best as
    model.onnx.
    """
    path, name = named_checkpoint(checkpoint, model)
    if qat_epochs and quantize in ("fp16", "none"):
        from edgecompress.errors import UsageError

        raise UsageError(f"--qat-epochs tunes for int8: with --quantize {quantize} leave it out")
    tuned = [{"stage": "qat", "epochs": qat_epochs}] if qat_epochs else []
    asked = {
        "quantize": quantize,
        "calibration_images": calibration_images,
        "method": method,
        "max_drop": max_drop,
        "sensitivity": sensitivity,
        "strict": strict,
    }
    stages: list[dict[str, Any]] = [
        {"stage": "load", "checkpoint": path},
        *tuned,
        {"stage": "export", "embed_preprocess": embed_preprocess, "min_ort": min_ort},
        {"stage": "quantize", **asked},
    ]
    go(context, "quantize", stages, {**locals(), "model": name})
