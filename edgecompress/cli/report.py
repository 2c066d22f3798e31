"""`edgecompress report DIR`."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Annotated, Any

import typer

from edgecompress.cli.console import Debug, print_line
from edgecompress.errors import UsageError


def report(
    root: Annotated[Path, typer.Argument(help="the folder of a run")], debug: Debug = False
) -> None:
    """Write report.html again from a run's result.json and history.csv."""
    from edgecompress.report.html import write_report
    from edgecompress.run.result import read

    if not (root / "result.json").is_file():
        raise UsageError(f"'{root}' has no result.json: give the folder of a run that ended")
    result = read(root / "result.json")
    if result.get("command") == "emulate":
        from edgecompress.report.emulation import write_report as write_emulation

        write_emulation(root, result)
        print_line(str(root / "report.html"))
        return
    write_report(root, result, _history(root / "history.csv"))
    print_line(str(root / "report.html"))


def _history(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    numbers = ("train_loss", "validation_loss", "validation_accuracy", "seconds")
    counts = ("epoch", "params", "cut")
    parsed = [
        {k: float(row[k]) for k in numbers} | {k: int(row.get(k) or 0) for k in counts}
        for row in rows
    ]
    return [
        {**row, **values, "chosen": row["chosen"] == "True"}
        for row, values in zip(rows, parsed, strict=True)
    ]
