"""`edgecompress run RECIPE.yaml`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from edgecompress.cli.console import env
from edgecompress.cli.options import Given, RunOptions, options_of, verb

RecipeFile = Annotated[
    Path, typer.Argument(help="a .yaml file, or the name of a recipe (edgecompress recipe ls)")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="a.b=c over the recipe, e.g. stages.0.epochs=3"),
]
Variant = Annotated[
    str | None,
    typer.Option("--variant", help="other values that the recipe holds by name, e.g. full"),
]


@verb(options_of(RunOptions, "Run"))
def run(recipe: RecipeFile, given: Given, set_: Set = None, variant: Variant = None) -> None:
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
    variables = {name: env(name) for name in environment if name not in overrides}
    loaded = read(path, environment | overrides, variant, variables)
    origins = (
        dict.fromkeys(leaves(path.read_text(encoding="utf-8")), "recipe")
        | dict.fromkeys(environment, "environment")
        | dict.fromkeys(overrides, "command line")
    )
    launch(loaded, origins, given.run_options())
