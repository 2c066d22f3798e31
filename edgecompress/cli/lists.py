"""`edgecompress models` and `edgecompress data`."""

from __future__ import annotations

from typing import Annotated

import typer

from edgecompress.cli.console import Debug, Json, print_json, print_line, stdout, table


def models(
    contains: Annotated[str, typer.Argument(help="only names that contain this")] = "",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List the networks that are known by name."""
    from edgecompress.models import model_names

    names = [name for name in model_names() if contains in name]
    if as_json:
        print_json({"models": names})
        return
    for name in names:
        print_line(name)


def data(as_json: Json = False, debug: Debug = False) -> None:
    """List the data sets that are known by name."""
    from edgecompress.data.registry import data_names

    if as_json:
        print_json({"data": data_names()})
        return
    stdout().print(table("", ["name", "about"], list(data_names().items())))
