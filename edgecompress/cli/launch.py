"""Run a recipe from the command line: check, execute with progress, show the result."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from edgecompress.cli.console import Bars, print_json, print_line, stderr, stdout, table
from edgecompress.units import format_count

if TYPE_CHECKING:
    from edgecompress.pipeline import Outcome
    from edgecompress.recipe import Recipe


def launch(
    recipe: Recipe,
    origins: Mapping[str, str],
    *,
    output: Path | None,
    resume: bool,
    exist_ok: bool,
    as_json: bool,
    verbose: bool,
    quiet: bool,
    dry_run: bool,
) -> None:
    """Execute `recipe`; ends the command with exit code 3 when a target was missed."""
    from edgecompress import pipeline
    from edgecompress.recipe import to_yaml
    from edgecompress.rundir import check_root, default_root
    from edgecompress.stages import STAGES

    if resume and output is None:
        from edgecompress.errors import UsageError

        raise UsageError("--resume without -o: name the folder of the run that was stopped")
    root = output or default_root(recipe.command, recipe.model)
    check_root(root, resume=resume, exist_ok=exist_ok)
    if dry_run:
        pipeline.prepare(recipe)
        print_line(to_yaml(recipe, origins).rstrip())
        return
    bars = Bars(quiet=quiet or as_json)
    try:
        outcome = pipeline.execute(recipe, STAGES, root, resume=resume, reporter=bars, origins=origins)
    finally:
        bars.close()
    show(outcome, as_json=as_json, verbose=verbose)
    if outcome.exit_code:
        raise typer.Exit(outcome.exit_code)


def show(outcome: Outcome, *, as_json: bool, verbose: bool) -> None:
    """Print the result of a run."""
    result: dict[str, Any] = outcome.state.numbers["result"]
    if as_json:
        print_json(result)
        return
    if verbose and result.get("widths"):
        widths = [(name, str(old), str(new), f"{new / old:.2f}") for name, (old, new) in result["widths"].items()]
        stderr().print(table("channels", ["group", "before", "kept", "share"], widths))
    console = stdout()
    if "student" in result:
        from edgecompress.report.html import comparison

        rows = comparison(result)
        title = f"{result['model']} trained on {result['data_label']}, {result['format']}"
        console.print(table(title, ["", "before", "after", "ratio"], rows))
        console.print(result["format_reason"], markup=False)
    else:
        stages = [(r["name"], f"{r['accuracy']:.2%}", format_count(r["params"])) for r in result["stages"]]
        title = f"{result['model']} on {result['data_label']}, {result['command']}"
        console.print(table(title, ["stage", "validation accuracy", "parameters"], stages))
    for line in outcome.missed:
        print_line(f"target missed: {line}; the best file so far is kept")
    print_line(f"file:   {outcome.root / result['artifact']}")
    print_line(f"report: {outcome.root / 'report.html'}")
