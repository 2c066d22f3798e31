"""Result files, and the formats that several tables share."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "benchmarks" / "results"


@cache
def read(name: str) -> Any:
    """The content of `benchmarks/results/NAME.json`."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def percent(share: float, digits: int = 1) -> str:
    """0.9877 as `98.8 %`."""
    return f"{100 * share:.{digits}f} %"


def size(count: float) -> str:
    """Bytes as `1,095 KB` below 10 MB and `537.2 MB` above, in decimal units."""
    if count < 10e6:
        return f"{count / 1e3:,.0f} KB"
    return f"{count / 1e6:,.1f} MB"


def bullets(*lines: str) -> str:
    """A Markdown list."""
    return "\n".join(f"- {line}" for line in lines)
