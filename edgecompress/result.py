"""`result.json` in memory and on disk. A regression's file says `metric` (and `loss`) where a
classification's says `accuracy`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgecompress import files

SCORES = {"accuracy": "accuracy", "r2": "R²"}
"""How tables call the score of each metric; in memory its keys are those of an accuracy."""
NAMES = {
    "accuracy": "metric",
    "validation_accuracy": "validation_metric",
    "test_accuracy": "test_metric",
}


def score_name(result: Mapping[str, Any]) -> str:
    """What the score of a result is called."""
    return SCORES[result.get("metric_name", "accuracy")]


def written(result: Mapping[str, Any]) -> dict[str, Any]:
    """The result as its file has it."""
    return dict(_renamed(result, NAMES) if "metric_name" in result else result)


def read(path: Path) -> dict[str, Any]:
    """The result in the file at `path`, as it is in memory."""
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return dict(
        _renamed(values, {theirs: ours for ours, theirs in NAMES.items()})
        if "metric_name" in values
        else values
    )


def write(path: Path, result: Mapping[str, Any]) -> None:
    """Write `result`, whole."""
    files.write_json(path, written(result))


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, Mapping):
        return {names.get(key, key): _renamed(inner, names) for key, inner in value.items()}
    return [_renamed(inner, names) for inner in value] if isinstance(value, list) else value
