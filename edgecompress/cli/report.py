"""`edgecompress report DIR`."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from edgecompress.cli.console import Debug, print_line
from edgecompress.errors import UsageError

if TYPE_CHECKING:
    from edgecompress.emulate.schema import EmulationResult
    from edgecompress.run.schema import HistoryRow


def report(
    root: Annotated[Path, typer.Argument(help="the folder of a run")], debug: Debug = False
) -> None:
    """Write report.html again from a run's result.json and history.csv."""
    from edgecompress.report.html import write_report
    from edgecompress.run.result import read

    if not (root / "result.json").is_file():
        raise UsageError(f"'{root}' has no result.json: give the folder of a run that ended")
    result = read(root / "result.json")
    if result["command"] == "emulate":
        from edgecompress.emulate.report import write_report as write_emulation

        write_emulation(root, cast("EmulationResult", result))
        print_line(str(root / "report.html"))
        return
    write_report(root, result, _history(root / "history.csv"))
    print_line(str(root / "report.html"))


def _history(path: Path) -> list[HistoryRow]:
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as stream:
        return [_epoch(row) for row in csv.DictReader(stream)]


def _epoch(row: Mapping[str, str]) -> HistoryRow:
    return {
        "stage": row["stage"],
        "epoch": int(row["epoch"]),
        "train_loss": float(row["train_loss"]),
        "validation_loss": float(row["validation_loss"]),
        "validation_accuracy": float(row["validation_accuracy"]),
        "learning_rate": float(row["learning_rate"]),
        "seconds": float(row["seconds"]),
        "params": int(row["params"]),
        "cut": int(row["cut"]),
        "chosen": row["chosen"] == "True",
    }
