"""Tables of training recipes."""

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


def _sure(accuracy: float, interval: list[Any]) -> str:
    low, high = interval
    return f"{percent(accuracy, 2)} ({100 * low:.1f} to {100 * high:.1f})"
