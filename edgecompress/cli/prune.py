"""`edgecompress prune CKPT`: cut and train in steps, or (with a schedule) while training."""

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
)
from edgecompress.cli.verbs import Model, go, source
from edgecompress.errors import UsageError


def prune(
    context: typer.Context,
    checkpoint: Annotated[Path, typer.Argument(help="model.safetensors, or the folder of a run")],
    amount: Annotated[
        str,
        typer.Option(
            "--amount",
            help="50% of the parameters to remove, or what is left: 2Mparams, 10MMACs, 4MB (fp32 "
            "file)",
        ),
    ] = "50%",
    steps: Annotated[
        str | None,
        typer.Option(
            "--steps", help="cuts, each training after each; auto: none above a factor of 4"
        ),
    ] = None,
    criterion: Annotated[
        str, typer.Option("--criterion", help="l1, l2, bn, taylor or random")
    ] = "taylor",
    scope: Annotated[
        str | None,
        typer.Option("--scope", help="cost (score a parameter, over all), local, or global"),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option("--layers", help="only these layers' outputs: features.0,features.3"),
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option("--schedule", help="cut while training: early, middle, late, or epochs 3,5,7"),
    ] = None,
    shares: Annotated[
        str | None,
        typer.Option(
            "--shares", help="with a schedule: static or dynamic (from the sparsity profile)"
        ),
    ] = None,
    step: Annotated[
        str | None,
        typer.Option("--step", help="with a schedule: share of channels that one cut removes"),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option("--patience", help="with a schedule: stop after so many idle epochs", min=1),
    ] = None,
    floor: Annotated[
        str, typer.Option("--floor", help="share of a group that always stays")
    ] = "0.02",
    round_to: Annotated[
        int, typer.Option("--round-to", help="widths are multiples of this", min=1)
    ] = 1,
    data: Data = "digits",
    model: Model = None,
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
    """Remove channels from a checkpoint, physically, and train what is left.

    Example: edgecompress prune runs/teacher --amount 40% --schedule early --epochs 12
    """
    from edgecompress.units import parse_share

    first, name = source(checkpoint, model)
    stage: dict[str, Any] = {
        "amount": amount,
        "criterion": criterion,
        "floor": parse_share(floor),
        "layers": _names(layers),
        "epochs": epochs,
        "learning_rate": learning_rate,
        "batch_size": batch_size,
    }
    given = {"--schedule": schedule, "--shares": shares, "--step": step, "--patience": patience}
    if any(value is not None for value in given.values()):
        if steps is not None or round_to != 1:
            used = next(option for option, value in given.items() if value is not None)
            raise UsageError(
                f"{used} cuts while training, so --steps and --round-to do not apply: drop "
                f"them, or drop {used}"
            )
        stage |= {
            "stage": "gradual",
            "schedule": _epochs(schedule),
            "shares": shares or "static",
            "scope": scope or "local",
        }
        stage |= {"step": parse_share(step or "10%"), "patience": patience}
    else:
        number: int | str = int(steps) if steps is not None and steps.isdigit() else steps or "auto"
        stage |= {"stage": "prune", "steps": number, "scope": scope or "cost", "round_to": round_to}
    go(context, "prune", [first, stage], {**locals(), "model": name})


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


def _epochs(text: str | None) -> str | list[int]:
    """`early`, or `3,5,7` as epochs; the recipe refuses other words."""
    parts = [part.strip() for part in (text or "early").split(",")]
    return (
        [int(part) for part in parts] if all(part.isdigit() for part in parts) else text or "early"
    )
