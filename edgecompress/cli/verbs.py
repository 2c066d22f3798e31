"""Verbs that are a recipe of one or two stages: train, prune, export, quantize."""

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

Checkpoint = Annotated[Path, typer.Argument(help="model.safetensors, or the folder of a run")]
Quantize = Annotated[str, typer.Option("--quantize", help="auto, int8, fp16 or none")]


def _checkpoint(path: Path) -> tuple[str, str]:
    """(path, model name) of a checkpoint, or of the one in a run's folder."""
    from edgecompress.checkpoint import read_manifest

    inner = path / "model.safetensors" if path.is_dir() else path
    return str(inner), read_manifest(inner).model.name


def _go(context: typer.Context, command: str, stages: list[dict[str, Any]], values: dict[str, Any]) -> None:
    from edgecompress.cli.launch import launch
    from edgecompress.recipe import validate

    names = ("model", "data", "seed", "device", "threads", "image_size", "skip_bad")
    recipe = validate({"command": command, "stages": stages, **{n: values[n] for n in names}}, command)
    launch(
        recipe, origins(context, {n: n for n in names}), output=values["output"], resume=values["resume"],
        exist_ok=values["exist_ok"], as_json=values["as_json"], verbose=values["verbose"], quiet=values["quiet"],
        dry_run=values["dry_run"],
    )  # fmt: skip


def train(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="a name (edgecompress models), pkg.mod:factory or file.py:factory")],
    data: Data = "digits",
    weights: Annotated[str | None, typer.Option("--weights", help="imagenet, or a file of tensors to start from")] = None,
    epochs: Epochs = None,
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
    """Train a network; the run's folder then holds model.safetensors, which --teacher takes."""
    stage = {"stage": "train", "epochs": epochs, "weights": weights, "learning_rate": learning_rate, "batch_size": batch_size}
    _go(context, "train", [stage], dict(locals()))


def prune(
    context: typer.Context,
    checkpoint: Checkpoint,
    amount: Annotated[str, typer.Option("--amount", help="share of the parameters to remove: 50%")] = "50%",
    steps: Annotated[str, typer.Option("--steps", help="cuts, each with training after it; auto: each at most a factor of 4")] = "auto",
    criterion: Annotated[str, typer.Option("--criterion", help="l1, l2, bn, taylor or random")] = "taylor",
    floor: Annotated[str, typer.Option("--floor", help="share of a group that always stays")] = "0.02",
    round_to: Annotated[int, typer.Option("--round-to", help="widths are multiples of this", min=1)] = 1,
    data: Data = "digits",
    epochs: Epochs = None,
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
    """Remove channels from a checkpoint, physically, and train what is left."""
    from edgecompress.units import parse_share

    path, model = _checkpoint(checkpoint)
    stage = {
        "stage": "prune", "amount": parse_share(amount), "steps": int(steps) if steps.isdigit() else steps,
        "criterion": criterion, "floor": parse_share(floor),
        "round_to": round_to, "epochs": epochs, "learning_rate": learning_rate, "batch_size": batch_size,
    }  # fmt: skip
    _go(context, "prune", [{"stage": "load", "checkpoint": path}, stage], {**locals(), "model": model})


def export(
    context: typer.Context,
    checkpoint: Checkpoint,
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
    path, model = _checkpoint(checkpoint)
    stages = [{"stage": "load", "checkpoint": path}, {"stage": "export"}]
    _go(context, "export", stages, {**locals(), "model": model})


def quantize(
    context: typer.Context,
    checkpoint: Checkpoint,
    quantize: Quantize = "auto",
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
    """Write a checkpoint as ONNX in fp32, fp16 and int8, measure each, and place the best as model.onnx."""
    path, model = _checkpoint(checkpoint)
    stages = [{"stage": "load", "checkpoint": path}, {"stage": "export"}, {"stage": "quantize", "quantize": quantize}]
    _go(context, "quantize", stages, {**locals(), "model": model})
