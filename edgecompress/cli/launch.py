"""Run a recipe from the command line: check, execute with progress, show the result."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from edgecompress.cli.console import Bars, print_line
from edgecompress.cli.show import show
from edgecompress.errors import UsageError

if TYPE_CHECKING:
    from edgecompress.cli.options import RunOptions
    from edgecompress.recipe import Recipe


def launch(recipe: Recipe, origins: Mapping[str, str], options: RunOptions) -> None:
    """Execute `recipe`; ends the command with exit code 3 when a target was missed."""
    from edgecompress import pipeline
    from edgecompress.cli.dry_run import dry_run
    from edgecompress.run.directory import check_root, default_root

    if options.resume and options.output is None:
        raise UsageError("--resume without -o: name the folder of the run that was stopped")
    root = options.output or default_root(recipe.command, recipe.model)
    first = int(os.environ.get("RANK", "0")) == 0
    if first:
        check_root(root, resume=options.resume, exist_ok=options.exist_ok)
    if options.dry_run:
        print_line(dry_run(recipe, origins, root))
        return
    if not first:
        beside(recipe, root, resume=options.resume)
        return
    bars = Bars(quiet=options.quiet or options.as_json)
    try:
        outcome = pipeline.execute(
            recipe, root, resume=options.resume, reporter=bars, origins=origins
        )
    finally:
        bars.close()
    show(outcome, as_json=options.as_json, verbose=options.verbose)
    if outcome.exit_code:
        raise typer.Exit(outcome.exit_code)


def beside(recipe: Recipe, root: Path, *, resume: bool) -> None:
    """Run `recipe` as one of several processes that torchrun started, but not the first: nothing is
    said, and nothing stays on disk.
    """
    from edgecompress import pipeline

    with tempfile.TemporaryDirectory() as name:
        own = Path(name) / "run"
        if resume:
            shutil.copytree(root, own)
        pipeline.execute(recipe, own, resume=resume)
