"""`edgecompress run RECIPE.yaml`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from edgecompress.cli.console import (
    Debug,
    DryRun,
    ExistOk,
    Json,
    Output,
    Quiet,
    Resume,
    Verbose,
    env,
)


def run(
    recipe: Annotated[
        Path, typer.Argument(help="a .yaml file, or the name of a recipe (edgecompress recipe ls)")
    ],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="a.b=c over the recipe, e.g. stages.0.epochs=3"),
    ] = None,
    variant: Annotated[
        str | None,
        typer.Option("--variant", help="other values that the recipe holds by name, e.g. full"),
    ] = None,
    output: Output = None,
    resume: Resume = False,
    exist_ok: ExistOk = False,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
    debug: Debug = False,
    dry_run: DryRun = False,
) -> None:
    """Run the stages of a recipe.

    Example: edgecompress run recipes/vgg16-4mb.yaml --set seed=1
    """
    from edgecompress.cli.launch import launch
    from edgecompress.cli.recipe import find
    from edgecompress.recipe import leaves, parse_overrides, read

    overrides = parse_overrides(set_ or [])
    path = find(recipe)
    environment = {
        name: os.environ[env(name)]
        for name in ("data", "seed", "device", "threads")
        if os.environ.get(env(name))
    }
    loaded = read(path, environment | overrides, variant)
    origins = (
        dict.fromkeys(leaves(path), "recipe")
        | dict.fromkeys(environment, "environment")
        | dict.fromkeys(overrides, "command line")
    )
    launch(
        loaded,
        origins,
        output=output,
        resume=resume,
        exist_ok=exist_ok,
        as_json=as_json,
        verbose=verbose,
        quiet=quiet,
        dry_run=dry_run,
    )
