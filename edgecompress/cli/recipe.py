"""`edgecompress recipe ls | cp | validate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgecompress.cli.console import Debug, print_line, stdout, table
from edgecompress.errors import UnknownNameError, UsageError

app = typer.Typer(help="List, copy and check recipes.", no_args_is_help=True, rich_markup_mode=None)


def roots() -> list[Path]:
    """Where recipes are: beside the package when it is a checkout, inside it when it is
    installed.
    """
    package = Path(__file__).parents[1]
    return [p for p in (package / "recipes", package.parent / "recipes") if p.is_dir()]


def known() -> dict[str, Path]:
    """Recipes by name: the path below the recipes folder without `.yaml`."""
    return {
        str(p.relative_to(r).with_suffix("")): p for r in roots() for p in sorted(r.rglob("*.yaml"))
    }


def find(recipe: Path) -> Path:
    """A recipe by path or by name. Raises `UsageError` naming the nearest."""
    if recipe.is_file():
        return recipe
    if str(recipe) in known():
        return known()[str(recipe)]
    raise UnknownNameError("recipe", str(recipe), known(), "(or give the path of a .yaml file)")


@app.command("ls")
def ls(debug: Debug = False) -> None:
    """List the recipes that come with edgecompress."""
    rows = []
    for name, path in known().items():
        first = path.read_text(encoding="utf-8").splitlines()[0]
        rows.append((name, first.removeprefix("# ")))
    stdout().print(table("", ["recipe", "about"], rows))


@app.command("cp")
def cp(
    name: Annotated[str, typer.Argument()],
    target: Annotated[Path, typer.Argument()],
    debug: Debug = False,
) -> None:
    """Copy a recipe, to change it."""
    from edgecompress import files

    if target.exists():
        raise UsageError(f"'{target}' exists: choose another name")
    files.write_bytes(target, find(Path(name)).read_bytes())
    print_line(str(target))


@app.command("validate")
def validate(paths: Annotated[list[Path], typer.Argument()], debug: Debug = False) -> None:
    """Check recipes: unknown keys, units, values; every error at once, with its line."""
    from edgecompress.recipe import read

    problems = []
    for path in paths:
        try:
            read(find(path))
        except UsageError as error:
            problems.append(str(error))
    if problems:
        raise UsageError("; ".join(problems))
    print_line(f"{len(paths)} recipe(s) valid")
