"""`edgecompress distill TEACHER STUDENT`."""

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
)
from edgecompress.cli.verbs import Quantize, checkpoint_in, go, source
from edgecompress.errors import UsageError


def distill(
    context: typer.Context,
    teacher: Annotated[
        str,
        typer.Argument(
            help="checkpoint or run folder of a trained network; with --mode online also a "
            "model's name"
        ),
    ],
    student: Annotated[
        str, typer.Argument(help="a model's name, or the checkpoint of a (pruned) network")
    ],
    mode: Annotated[
        str,
        typer.Option("--mode", help="offline (fixed teacher), online (it trains too) or mutual"),
    ] = "offline",
    loss: Annotated[str, typer.Option("--loss", help="kl, softmax-mse or dkd")] = "kl",
    temperature: Annotated[
        float | None, typer.Option("--temperature", help="default 4; softmax-mse 5")
    ] = None,
    alpha: Annotated[
        float | None, typer.Option("--alpha", help="weight of the teacher beside the labels")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option("--top-k", help="keep only so many of the teacher's logits", min=1)
    ] = None,
    views: Annotated[
        int | None,
        typer.Option("--views", help="augmented views an image; default: one an epoch", min=1),
    ] = None,
    features: Annotated[
        str | None,
        typer.Option("--features", help="hint or attention: learn from the teacher's maps too"),
    ] = None,
    control: Annotated[
        bool, typer.Option("--control", help="train the same student once more without the teacher")
    ] = False,
    prune_student: Annotated[
        str | None,
        typer.Option("--prune-student", help="cut it while it trains: 50%, 2Mparams, 4MB"),
    ] = None,
    prune_teacher: Annotated[
        str | None, typer.Option("--prune-teacher", help="the same, where the teacher trains")
    ] = None,
    schedule: Annotated[
        str, typer.Option("--schedule", help="when cuts are made: early, middle or late")
    ] = "early",
    step: Annotated[
        str, typer.Option("--step", help="share of channels that one cut removes")
    ] = "10%",
    patience: Annotated[
        int | None, typer.Option("--patience", help="stop after so many idle epochs", min=1)
    ] = None,
    precision: Annotated[str, typer.Option("--precision", help="auto, fp32 or bf16")] = "auto",
    optimizer: Annotated[str, typer.Option("--optimizer", help="adamw, adam or sgd")] = "adamw",
    quantize: Quantize = "none",
    model: Annotated[
        str | None,
        typer.Option(
            "--model", help="for a student in a file of tensors: the network they belong to"
        ),
    ] = None,
    teacher_model: Annotated[
        str | None,
        typer.Option(
            "--teacher-model", help="the teacher's own code (file.py:factory), named again"
        ),
    ] = None,
    data: Data = "digits",
    epochs: Epochs = None,
    learning_rate: Rate = None,
    batch_size: BatchSize = None,
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
    """Train a small network on what a trained one says, and write it as ONNX.

    Example: edgecompress distill runs/teacher student3 --data folder:photos --control
    """
    from edgecompress.models import model_names
    from edgecompress.units import parse_share

    first: dict[str, Any] = {"stage": "teacher"}
    if mode != "offline" and (not Path(teacher).exists() or teacher in model_names()):
        first |= {"model": teacher, "epochs": 0}
    else:
        first |= {"checkpoint": checkpoint_in(Path(teacher)), "model": teacher_model}
    if Path(student).exists() and student not in model_names():
        second, name = source(Path(student), model)
    elif model is not None:
        raise UsageError(
            f"--model {model} names the network of a student in a file, and student "
            f"'{student}' is no file: leave --model out"
        )
    else:
        second, name = {"stage": "train", "epochs": 0}, student
    learning = {
        "stage": "distill",
        "mode": mode,
        "loss": loss,
        "temperature": temperature,
        "alpha": alpha,
        "top_k": top_k,
        "views": views,
        "features": features,
        "control": control,
        "prune_student": prune_student,
        "prune_teacher": prune_teacher,
        "schedule": schedule,
        "step": parse_share(step),
        "patience": patience,
        "precision": precision,
        "optimizer": optimizer,
        "epochs": epochs,
        "learning_rate": learning_rate,
        "batch_size": batch_size,
    }
    last = [
        {"stage": "simplify"},
        {"stage": "export"},
        {"stage": "quantize", "quantize": quantize},
        {"stage": "measure"},
    ]
    go(context, "distill", [first, second, learning, *last], {**locals(), "model": name})
