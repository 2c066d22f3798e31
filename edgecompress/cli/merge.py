"""`edgecompress merge A B [C ...]`."""

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
from edgecompress.cli.verbs import checkpoint_in, go, named_checkpoint


def merge(
    context: typer.Context,
    parents: Annotated[
        list[Path],
        typer.Argument(help="two or more checkpoints (or run folders) of the same network"),
    ],
    method: Annotated[
        str, typer.Option("--method", help="gates or greedy; as baselines average and align")
    ] = "gates",
    heads: Annotated[
        str,
        typer.Option(
            "--heads", help="average, or separate for networks of different classes (--data A+B)"
        ),
    ] = "average",
    hierarchical: Annotated[
        bool, typer.Option("--hierarchical", help="merge in pairs, and the results again")
    ] = False,
    width: Annotated[
        float, typer.Option("--width", help="channels kept, as a multiple of one network's")
    ] = 1.0,
    finetune_epochs: Annotated[
        int | None, typer.Option("--finetune-epochs", help="default: as many as --epochs", min=0)
    ] = None,
    draw: Annotated[
        str, typer.Option("--draw", help="draw gates once a batch or once a sample")
    ] = "batch",
    noise: Annotated[
        float, typer.Option("--noise", help="width of the gates' noise, 0 to 1")
    ] = 1.0,
    lambda_schedule: Annotated[
        str, typer.Option("--lambda-schedule", help="source, linear, cosine or constant")
    ] = "source",
    lambda_scale: Annotated[
        float, typer.Option("--lambda-scale", help="factor on every lambda")
    ] = 1.0,
    require_better: Annotated[
        bool,
        typer.Option("--require-better", help="exit 3 when the result is below its best parent"),
    ] = False,
    model: Annotated[
        str | None,
        typer.Option("--model", help="your own code (file.py:factory) that builds the networks"),
    ] = None,
    data: Data = "digits",
    epochs: Epochs = None,
    learning_rate: Rate = None,
    batch_size: BatchSize = None,
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
    """Merge trained networks into one of the same size, and say whether it is better than the best
    of them.

    Example: edgecompress merge runs/a runs/b --data folder:photos --epochs 20
    """
    name = named_checkpoint(parents[0], model)[1]
    stage: dict[str, Any] = {
        "stage": "merge",
        "checkpoints": [checkpoint_in(path) for path in parents],
        "method": method,
        "heads": heads,
        "hierarchical": hierarchical,
        "width": width,
        "finetune_epochs": finetune_epochs,
        "draw": draw,
        "noise": noise,
        "lambda_schedule": lambda_schedule,
        "lambda_scale": lambda_scale,
        "require_better": require_better,
        "epochs": epochs,
        "learning_rate": learning_rate,
        "batch_size": batch_size,
        "precision": precision,
    }
    last = [{"stage": "export"}, {"stage": "quantize", "quantize": "none"}, {"stage": "measure"}]
    go(context, "merge", [stage, *last], {**locals(), "model": name})
