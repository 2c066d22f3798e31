"""Run a recipe from the command line: check, execute with progress, show the result."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from edgecompress.cli.console import Bars, print_json, print_line, stderr, stdout, table
from edgecompress.errors import UsageError
from edgecompress.units import format_count

if TYPE_CHECKING:
    from edgecompress.cli.options import RunOptions
    from edgecompress.pipeline import Outcome
    from edgecompress.recipe import Recipe


def launch(recipe: Recipe, origins: Mapping[str, str], options: RunOptions) -> None:
    """Execute `recipe`; ends the command with exit code 3 when a target was missed."""
    from edgecompress import pipeline
    from edgecompress.prepare import prepare
    from edgecompress.recipe import to_yaml
    from edgecompress.run.directory import check_root, default_root

    if options.resume and options.output is None:
        raise UsageError("--resume without -o: name the folder of the run that was stopped")
    root = options.output or default_root(recipe.command, recipe.model)
    first = int(os.environ.get("RANK", "0")) == 0
    if first:
        check_root(root, resume=options.resume, exist_ok=options.exist_ok)
    if options.dry_run:
        prepare(recipe)
        print_line(to_yaml(recipe, origins).rstrip())
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


def show(outcome: Outcome, *, as_json: bool, verbose: bool) -> None:
    """Print the result of a run."""
    from edgecompress.run.result import score_name, written

    result: dict[str, Any] = outcome.result
    if as_json:
        print_json(written(result))
        return
    if verbose and result.get("layers"):
        stderr().print(
            table(
                "layers",
                ["layer", "widths", "parameters", "share", "MACs", "share"],
                layer_rows(result["layers"]),
            )
        )
    console = stdout()
    if "student" in result:
        from edgecompress.report.html import comparison, sides

        rows = comparison(result)
        title = f"{result['model']} trained on {result['data_label']}, {result['format']}"
        console.print(table(title, ["", *sides(result), "ratio"], rows))
        console.print(result["format_reason"], markup=False)
    else:
        stages = [
            (r["name"], f"{r['accuracy']:.2%}", format_count(r["params"])) for r in result["stages"]
        ]
        title = f"{result['model']} on {result['data_label']}, {result['command']}"
        console.print(
            table(title, ["stage", f"validation {score_name(result)}", "parameters"], stages)
        )
    if (result.get("distill") or {}).get("teacher"):
        from edgecompress.report.html import distillation

        console.print(
            table(
                "distillation",
                ["", "parameters", "weights in fp32", "accuracy"],
                distillation(result),
            )
        )
    if result.get("constant_channels") and (result["command"] == "shrink" or verbose):
        numbers = ("size", "constant", "unread", "removed")
        rows = [
            (r["group"], *(str(r[k]) for k in numbers), r["reason"])
            for r in result["constant_channels"]
        ]
        columns = ["group", "channels", "constant", "unread", "removed", "why not all"]
        console.print(table("channels that never change or are never read", columns, rows))
    if "compare" in result:
        show_comparison(result["compare"])
    if "profile" in result:
        show_profile(result["profile"], verbose=verbose)
    for name, reason in result.get("gradual", {}).get("left_alone", {}).items():
        print_line(f"left alone: {name}: {reason}")
    for line in outcome.missed:
        print_line(f"target missed: {line}; the best file so far is kept")
    print_line(f"file:   {outcome.root / result['artifact']}")
    print_line(f"report: {outcome.root / 'report.html'}")


def show_comparison(told: dict[str, Any]) -> None:
    """Print the results of strategies, and the student against each other one."""
    keys = ("min", "median", "mean", "max", "std")
    rows = [
        (name, *(f"{values[key]:.4f}" for key in keys)) for name, values in told["summary"].items()
    ]
    title = f"{told['score']}, {told['repeats']} results of {told['budget']} epochs each"
    stdout().print(table(title, ["strategy", *keys], rows))
    for name, found in told["student_against"].items():
        print_line(
            f"student against {name}: p = {found['p']:.3g} ({found['test']}), effect "
            f"{found['effect']:+.2f}"
        )


def layer_rows(layers: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Rows of the table of layers: widths, parameters and MACs before and after."""

    def pair(values: list[int]) -> tuple[str, str]:
        old, new = values
        return f"{format_count(old)} -> {format_count(new)}", f"{new / old:.2f}" if old else "-"

    return [
        (
            row["layer"],
            f"{row['inputs'][0]}x{row['outputs'][0]} -> {row['inputs'][1]}x{row['outputs'][1]}",
            *pair(row["params"]),
            *pair(row["macs"]),
        )
        for row in layers
    ]


def show_profile(profile: dict[str, Any], *, verbose: bool) -> None:
    """Print a sparsity profile: accuracy at each level, with `verbose` the share of each layer too,
    and where it stops to hold.
    """
    shown = range(len(profile["levels"])) if verbose else range(1, len(profile["levels"]), 2)
    levels = [f"{profile['levels'][i]:.0%}" for i in shown]
    accuracy = ("validation accuracy", *(f"{profile['accuracy'][i]:.1%}" for i in shown))
    layers = [
        (name, *(f"{shares[i]:.0%}" for i in shown)) for name, shares in profile["layers"].items()
    ]
    stdout().print(
        table(
            "share of each layer's weights at zero", ["global level", *levels], [accuracy, *layers]
        )
    )
    within = f"within {100 * profile['tolerance']:g} point(s) of {profile['unpruned']:.2%}"
    print_line(
        f"accuracy holds up to {profile['holds_to']:.0%} of all weights at zero ({within}, "
        "on validation)"
    )
