"""Tables of accuracy at size, and of the training recipes behind it."""

from __future__ import annotations

from typing import Any

from docs.scripts.markdown import table
from docs.scripts.results.files import percent, read


def training() -> str:
    """What each change of a training recipe is worth on validation."""
    rows = []
    for row in sorted(read("training")["rows"], key=lambda row: -row["validation_accuracy"]):
        options = row["command"].split("--precision bf16 ")[1]
        rows.append((row["name"], f"`{options}`", _sure(row["validation_accuracy"], row["ci95"])))
    return table(["row", "options", "validation (95 % interval)"], rows)


def pareto() -> str:
    """Accuracy of files on the test split, against their bytes."""
    rows = []
    for row in sorted(read("pareto")["rows"], key=lambda row: row["bytes"]):
        rows.append(
            (
                row["name"],
                row.get("target", ""),
                f"{row['bytes']:,}",
                row["format"],
                f"{row['params']:,}",
                _sure(row["accuracy"], row["ci95"]),
                f"{row['wall_s'] / 60:.0f} of {row['time_s'] / 60:.0f} min",
                str(row["seed"]),
            )
        )
    columns = ["row", "target", "bytes", "format", "parameters", "test (95 %)", "took", "seed"]
    return table(columns, rows)


def _sure(accuracy: float, interval: list[Any]) -> str:
    low, high = interval
    return f"{percent(accuracy, 2)} ({100 * low:.1f} to {100 * high:.1f})"
