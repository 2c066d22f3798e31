"""`result.json`: built once, at the end of a run, from its last state.

A regression's file has `metric` (and `loss`) where a classification's has `accuracy`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

from edgecompress import files
from edgecompress.proportions import interval
from edgecompress.run.provenance import provenance
from edgecompress.run.schema import (
    ConstantRow,
    Environment,
    Figures,
    FoldedPoolRow,
    FormatRecord,
    RunResult,
    StageRecord,
    TargetsRow,
)
from edgecompress.run.sections import Sections
from edgecompress.run.stage import AUTO

if TYPE_CHECKING:
    import torch

    from edgecompress.data import DataSet
    from edgecompress.measure.cost import LayerRow
    from edgecompress.run.stage import RunSettings
    from edgecompress.run.state import State
    from edgecompress.run.store import Ledger

R = TypeVar("R", StageRecord, FormatRecord)
SCORES = {"accuracy": "accuracy", "r2": "R²"}
"""How tables call the score of each metric; in memory its keys are those of an accuracy."""
NAMES = {
    "accuracy": "metric",
    "validation_accuracy": "validation_metric",
    "test_accuracy": "test_metric",
}


def score_name(result: RunResult) -> str:
    """What the score of a result is called."""
    return SCORES[result.get("metric_name", "accuracy")]


def written(result: RunResult) -> Mapping[str, object]:
    """The result as its file has it."""
    return _with_names(result, NAMES) if "metric_name" in result else result


def read(path: Path) -> RunResult:
    """The result in the file at `path`, as it is in memory."""
    values: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    if "metric_name" in values:
        values = _with_names(values, {theirs: ours for ours, theirs in NAMES.items()})
    return cast(RunResult, values)


def write(path: Path, result: RunResult) -> None:
    """Write `result`, whole."""
    files.write_json(path, written(result))


def _with_names(values: Mapping[str, object], names: Mapping[str, str]) -> dict[str, object]:
    """`values` with other `names` of some keys, at every depth."""
    return {names.get(key, key): _renamed(inner, names) for key, inner in values.items()}


def _renamed(value: object, names: Mapping[str, str]) -> object:
    if isinstance(value, Mapping):
        return _with_names(value, names)
    return [_renamed(inner, names) for inner in value] if isinstance(value, list) else value


def build(
    recipe: RunSettings,
    data: DataSet,
    state: State,
    ledger: Ledger,
    root: Path,
    device: torch.device,
) -> RunResult:
    """The result of a run on `device` whose files stand in `root`."""
    shipped = state.shipped
    artifact = artifact_of(state)
    final: Figures = {}
    if state.figures is not None:
        final = {**_planned(state), **cast(Figures, state.figures)}
    result: RunResult = {
        "schema": 1,
        "command": recipe.command,
        "model": state.source.name if recipe.model == AUTO else recipe.model,
        "data": recipe.data,
        "seed": recipe.seed,
        "artifact": artifact,
        "bytes": (root / artifact).stat().st_size,
        "format": shipped.chosen.format if shipped else "fp32",
        **final,
        "stages": [_sure(row.as_dict(), data) for row in state.rows],
        "formats": [_sure(row.as_dict(), data) for row in shipped.formats] if shipped else [],
        "format_reason": shipped.reason if shipped else "",
        "widths": {name: list(pair) for name, pair in state.widths.items()},
        "layers": layers_of(state, data),
        "missed": list(missed_texts(state)),
        "data_label": data.label,
        "data_digest": ledger.data_digest,
        "recipe_digest": recipe.digest(),
        "images": data.sizes(),
        "image_shape": list(data.image_shape) if data.task.metric == "accuracy" else [],
        **provenance(root),
        **_environment(ledger, device),
        **cast(Sections, {name: dict(section) for name, section in state.sections.items()}),
    }
    if shipped is not None and shipped.refused:
        result["refused_formats"] = [
            {"format": form, "reason": reason} for form, reason in shipped.refused.items()
        ]
    if state.constant_channels:
        result["constant_channels"] = [cast(ConstantRow, dict(r)) for r in state.constant_channels]
    if state.control is not None and "control" not in result:
        result["control"] = {
            "validation_accuracy": state.control.validation_accuracy,
            "params": state.control.params,
            "epochs": state.control.epochs,
            "onnx": state.control.onnx,
        }
    if data.task.metric != "accuracy":
        result["metric_name"] = data.task.metric
    return result


def _sure(row: R, data: DataSet) -> R:
    """A row with the number of its samples, by default all validation images, and the 95 % interval
    of its accuracy.
    """
    count = row["n"] = row.get("n", len(data.validation))
    if data.task.metric == "accuracy":
        row["ci95"] = list(interval(round(row["accuracy"] * count), count))
    return row


def artifact_of(state: State) -> str:
    """The name of the file that ships."""
    if state.shipped is not None:
        return "model.onnx"
    return "model-fp32.onnx" if state.exported else "model.safetensors"


def missed_texts(state: State) -> tuple[str, ...]:
    """A text for each target that was missed; those of the final figures first."""
    stages = sorted(state.missed, key=lambda stage: stage != "measure")
    return tuple(text for stage in stages for text in state.missed[stage])


def layers_of(state: State, data: DataSet) -> list[LayerRow]:
    """Widths, parameters and MACs of each layer: of the baseline, and of the model."""
    import torch

    from edgecompress.measure.cost import cost, layer_table

    costs = cost(state.need_model(), torch.zeros(1, *data.image_shape))
    return layer_table(state.layers, costs)


def _planned(state: State) -> Figures:
    """The targets, and what the plan made of them."""
    plan = state.plan
    targets: TargetsRow = {
        "bytes": None if plan is None else plan.bytes,
        "macs": None if plan is None else plan.macs,
        "latency_s": None if plan is None else plan.latency_s,
        "max_drop": None if plan is None else plan.max_drop,
    }
    return {
        "target_bytes": targets["bytes"],
        "targets": targets,
        "plan_reason": "" if plan is None else plan.reason,
        "smallest_bytes": None if plan is None else plan.smallest_bytes,
        "folded_pools": [cast(FoldedPoolRow, dict(row)) for row in state.folded_pools],
        "constant_channels": [cast(ConstantRow, dict(row)) for row in state.constant_channels],
    }


def _environment(ledger: Ledger, device: torch.device) -> Environment:
    import torch

    from edgecompress.measure import machine

    hardware = dict(machine.hardware())
    if device.type == "cuda":
        hardware["gpu"] = torch.cuda.get_device_name(device)
    return {
        "wall_s": ledger.spent_s,
        "peak_rss_bytes": ledger.peak_rss_bytes,
        "versions": dict(machine.versions()),
        "hardware": hardware,
    }
