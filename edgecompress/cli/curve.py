"""`compress --curve 32KB,96KB,1MB`: a file for each size, all from one teacher.

The folder of a curve holds the run of the teacher, a run for each size under its name, the largest
first, and `curve.json` and `report.html` over all of them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from edgecompress import files
from edgecompress.cli.console import Bars, print_json, print_line, stdout, table
from edgecompress.errors import UsageError
from edgecompress.proportions import sure
from edgecompress.run.directory import check_root
from edgecompress.units import format_count, format_size, parse_size

if TYPE_CHECKING:
    from edgecompress.cli.options import RunOptions
    from edgecompress.recipe import Recipe
    from edgecompress.report.curve import Curve

FILE, PAGE = "curve.json", "report.html"
TEACHER = "teacher"


@dataclass(frozen=True)
class Part:
    """One run of a curve: the name of its folder, its recipe, and where its values came from."""

    name: str
    recipe: Recipe
    origins: Mapping[str, str]


def sizes(text: str) -> list[str]:
    """The sizes of `32KB,96KB`, as they are written, the largest first.

    Raises `UsageError` where one has no meaning or stands twice, or where there is one alone.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    values = {part: parse_size(part) for part in parts}
    if len(set(values.values())) < max(2, len(parts)):
        raise UsageError(f"--curve {text}: give two sizes or more, each once, like 32KB,96KB,1MB")
    return sorted(parts, key=lambda part: -values[part])


def divided(parts: Sequence[Part], shares: Sequence[float]) -> list[Part]:
    """The parts, each with its share of the time that all of them may take."""
    time = parts[0].recipe.time
    if time is None:
        return list(parts)
    return [
        replace(part, recipe=part.recipe.model_copy(update={"time": time * share / sum(shares)}))
        for part, share in zip(parts, shares, strict=True)
    ]


def check(root: Path, options: RunOptions) -> None:
    """Raises `UsageError` when `root` is in use, or holds no curve that can be resumed, and under
    torchrun.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(
            "--curve runs in one process: leave torchrun out, or give one size with --target"
        )
    if not options.resume:
        check_root(root, resume=False, exist_ok=options.exist_ok)
    elif options.output is None:
        raise UsageError("--resume without -o: name the folder of the curve that was stopped")
    elif not any(root.glob("*/resolved.yaml")):
        raise UsageError(
            f"nothing to resume in '{root}': it holds no run of a curve; give the -o of the one "
            "that was stopped"
        )


def draw(parts: Sequence[Part], root: Path, options: RunOptions) -> None:
    """Run the parts of a curve, show what they reach, and end the command with exit code 3 where a
    target was missed. Stages that are complete in a curve that is resumed are read back.
    """
    from edgecompress.pipeline import execute
    from edgecompress.report.curve import collect, write_page

    bars = Bars(quiet=options.quiet or options.as_json)
    try:
        for number, part in enumerate(parts):
            folder = root / part.name
            bars.note(f"{part.name} ({number + 1} of {len(parts)})")
            begun = options.resume and (folder / "resolved.yaml").is_file()
            execute(part.recipe, folder, resume=begun, reporter=bars, origins=part.origins)
            for name in (FILE, PAGE):  # of an earlier curve, of which a part is gone now
                (root / name).unlink(missing_ok=True)
    finally:
        bars.close()
    names = [part.name for part in parts]
    curve = collect(root, [n for n in names if n != TEACHER], [n for n in names if n == TEACHER])
    files.write_json(root / FILE, curve)
    write_page(root / PAGE, curve)
    show(curve, root, as_json=options.as_json)
    if any(point["missed"] for point in curve["points"]):
        raise typer.Exit(3)


def show(curve: Curve, root: Path, *, as_json: bool) -> None:
    """Print a curve."""
    if as_json:
        print_json(curve)
        return
    from edgecompress.report.curve import HEADINGS, rows

    title = f"{curve['model']} trained on {curve['data_label']}"
    stdout().print(table(title, list(HEADINGS), rows(curve)))
    teacher = curve["teacher"]
    shown = sure(teacher["score"], teacher.get("ci95"))
    images = f"; n {teacher['n']}" if "n" in teacher else ""
    print_line(
        f"teacher: {shown}, {format_count(teacher['params'])} parameters, "
        f"{format_size(teacher['bytes'])} in fp32{images}"
    )
    for point in curve["points"]:
        for line in point["missed"]:
            print_line(f"target missed at {point['target']}: {line}")
    print_line(f"curve:  {root / FILE}")
    print_line(f"report: {root / PAGE}")
