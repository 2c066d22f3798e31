"""`edgecompress compare MODEL`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from edgecompress.cli.console import (
    BatchSize,
    Data,
    Debug,
    Device,
    DryRun,
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
from edgecompress.cli.verbs import go


def compare(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(help="a name (edgecompress models), pkg.mod:factory or file.py:factory")
    ],
    budget: Annotated[int, typer.Option("--budget", help="epochs of each strategy", min=6)] = 12,
    repeats: Annotated[int, typer.Option("--repeats", help="results of each strategy", min=2)] = 3,
    lambda_scale: Annotated[
        float, typer.Option("--lambda-scale", help="factor on every lambda of the gates")
    ] = 1.0,
    data: Data = "digits",
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
    """Does merging help? One budget of epochs: two networks merged, the best of three, one alone,
    one distilled from two.

    Example: edgecompress compare resnet20 --data folder:photos --budget 60 --repeats 5
    """
    stage: dict[str, Any] = {
        "stage": "compare",
        "budget": budget,
        "repeats": repeats,
        "lambda_scale": lambda_scale,
        "learning_rate": learning_rate,
        "batch_size": batch_size,
        "precision": precision,
    }
    go(context, "compare", [stage], dict(locals()))
