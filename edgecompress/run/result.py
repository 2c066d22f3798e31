"""`result.json`: built once, at the end of a run, from its last state.

A regression's file has `metric` (and `loss`) where a classification's has `accuracy`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import JsonValue

from edgecompress import files

if TYPE_CHECKING:
    from edgecompress.data import DataSet
    from edgecompress.run.stage import RunSettings
    from edgecompress.run.state import State
    from edgecompress.run.store import Ledger

Result = dict[str, JsonValue]
"""A result in memory, as README and docs describe `result.json`."""

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


def build(recipe: RunSettings, data: DataSet, state: State, ledger: Ledger, root: Path) -> Result:
    """The result of a run whose files stand in `root`."""
    shipped = state.shipped
    artifact = artifact_of(state)
    final: dict[str, JsonValue] = {}
    if state.figures is not None:
        final = _planned(state) | dict(state.figures)
    result: Result = {
        "schema": 1,
        "command": recipe.command,
        "model": recipe.model,
        "data": recipe.data,
        "seed": recipe.seed,
        "artifact": artifact,
        "bytes": (root / artifact).stat().st_size,
        "format": shipped.chosen.format if shipped else "fp32",
        **final,
        "stages": [row.as_dict() for row in state.rows],
        "formats": [row.as_dict() for row in shipped.formats] if shipped else [],
        "format_reason": shipped.reason if shipped else "",
        "widths": {name: list(pair) for name, pair in state.widths.items()},
        "layers": layers_of(state, data),
        "missed": list(missed_texts(state)),
        "data_label": data.label,
        "data_digest": ledger.data_digest,
        "recipe_digest": recipe.digest(),
        **_environment(ledger),
        **{name: dict(section) for name, section in state.sections.items()},
    }
    if state.constant_channels:
        result["constant_channels"] = [dict(row) for row in state.constant_channels]
    if state.control is not None:
        result.setdefault("control", asdict(state.control))
    if data.task.metric != "accuracy":
        result["metric_name"] = data.task.metric
    return result


def artifact_of(state: State) -> str:
    """The name of the file that ships."""
    if state.shipped is not None:
        return "model.onnx"
    return "model-fp32.onnx" if state.exported else "model.safetensors"


def missed_texts(state: State) -> tuple[str, ...]:
    """A text for each target that was missed; those of the final figures first."""
    stages = sorted(state.missed, key=lambda stage: stage != "measure")
    return tuple(text for stage in stages for text in state.missed[stage])


def layers_of(state: State, data: DataSet) -> list[JsonValue]:
    """Widths, parameters and MACs of each layer: of the baseline, and of the model."""
    import torch

    from edgecompress.measure.cost import cost, layer_table

    costs = cost(state.need_model(), torch.zeros(1, *data.image_shape))
    rows = layer_table([asdict(row) for row in state.layers], costs)
    return [cast(JsonValue, row) for row in rows]


def _planned(state: State) -> Result:
    """The targets, and what the plan made of them."""
    plan = state.plan
    targets: Result = {
        name: None if plan is None else getattr(plan, name)
        for name in ("bytes", "macs", "latency_s", "max_drop")
    }
    return {
        "target_bytes": targets["bytes"],
        "targets": targets,
        "plan_reason": "" if plan is None else plan.reason,
        "smallest_bytes": None if plan is None else plan.smallest_bytes,
        "folded_pools": [dict(row) for row in state.folded_pools],
        "constant_channels": [dict(row) for row in state.constant_channels],
    }


def _environment(ledger: Ledger) -> Result:
    from edgecompress.measure import machine

    return {
        "wall_s": ledger.spent_s,
        "peak_rss_bytes": ledger.peak_rss_bytes,
        "versions": dict(machine.versions()),
        "hardware": dict(machine.hardware()),  # type: ignore[arg-type]
    }
