"""Stage `measure`: the final figures. The test split's labels are read here, once, for the
teacher's file and for the one that ships.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from edgecompress import result as results
from edgecompress.export import onnx as onnx_export
from edgecompress.measure import latency, machine, runtime
from edgecompress.measure.cost import cost, layer_table
from edgecompress.measure.runtime import Runtime
from edgecompress.pipeline import TOLD, UNMET, Context, State
from edgecompress.report.html import write_report
from edgecompress.settings import MeasureStage
from edgecompress.stages.common import make_format, runtime_score
from edgecompress.stages.ship import parity
from edgecompress.units import format_count, format_size


def measure(context: Context, settings: MeasureStage, state: State) -> State:
    """Write `result.json` and `report.html`; note which targets were missed."""
    start = time.perf_counter()
    root, model = context.run.root, state.need_model().cpu()
    teacher, chosen = dict(state.numbers["teacher"]), state.numbers["chosen"]
    shipped, original = root / "model.onnx", root / teacher.pop("onnx")
    validation = teacher.pop("validation_accuracy")
    loaded = [runtime.load(path, threads=context.threads) for path in (original, shipped)]
    context.reporter.step(1, 4, "latency")
    times = latency.measure(loaded, samples=settings.samples, limit_s=2.0)
    context.reporter.step(2, 4, "accuracy on the test split")
    costs = cost(model, context.example)
    before = _side(
        context.as_read_by(state.mentor),
        loaded[0],
        times[0],
        teacher["bytes"],
        teacher["params"],
        teacher["macs"],
    )
    after = _side(context, loaded[1], times[1], shipped.stat().st_size, costs.params, costs.macs)
    context.reporter.step(3, 4, "parity")
    planned = state.numbers.get("plan") or {}
    missed = missed_targets(
        planned, after, times[1].percentile(50) / 1e3, validation - chosen["accuracy"]
    )
    unmet = (
        None if planned else state.numbers.get("floors_reached")
    )  # a plan's limits are held against the file itself
    missed += [text for text in (unmet, *(state.numbers.get(key) for key in UNMET[1:])) if text]
    result: dict[str, Any] = {
        "schema": 1,
        "command": context.recipe.command,
        "model": context.recipe.model,
        "data": context.recipe.data,
        "seed": context.recipe.seed,
        "target_bytes": planned.get("bytes"),
        "artifact": "model.onnx",
        "bytes": after["bytes"],
        "format": chosen["format"],
        "teacher": before,
        "student": after,
        "stages": [dict(row) for row in state.rows],
        "parity": parity(context, model, shipped),
        "wall_s": round(state.numbers["spent_s"] + time.perf_counter() - start, 3),
        "peak_rss_bytes": max(state.numbers["peak_rss_bytes"], machine.peak_rss_bytes()),
        "versions": machine.versions(),
        "hardware": machine.hardware(),
        "targets": {k: planned.get(k) for k in ("bytes", "macs", "latency_s", "max_drop")},
        "missed": missed,
        "format_reason": chosen["reason"],
        "plan_reason": planned.get("reason", ""),
        "smallest_bytes": planned.get("smallest_bytes"),
        "formats": state.numbers["formats"],
        "data_label": context.data.label,
        "data_digest": state.numbers["data_digest"],
        "recipe_digest": context.recipe.digest(),
        "folded_pools": state.numbers.get("folded_pools", []),
        "constant_channels": state.numbers.get("constant_channels", []),
        "widths": state.numbers.get("widths", {}),
        "layers": layer_table(state.numbers["layers"], costs),
        **{key: state.numbers[key] for key in TOLD if key in state.numbers},
    }
    if context.data.task.metric != "accuracy":
        result["metric_name"] = context.data.task.metric
    if "control" in state.numbers:
        control = dict(state.numbers["control"])
        loaded_control = runtime.load(
            _as_shipped(context, root / control.pop("onnx"), chosen["format"]),
            threads=context.threads,
        )
        result["control"] = {**control, **runtime_score(context, loaded_control, context.data.test)}
    results.write(root / "result.json", result)
    write_report(root, result, list(state.history))
    return state.with_numbers(result=result, missed=missed)


def _as_shipped(context: Context, fp32: Path, form: str) -> Path:
    """The control's file in the format that ships, so that both are compared alike."""
    if form == "fp32":
        return fp32
    path = fp32.with_name(f"control-{form}.onnx")
    onnx_export.save(make_format(context, fp32, form), path)
    return path


def _side(
    context: Context, loaded: Runtime, taken: latency.Latency, size: int, params: int, macs: int
) -> dict[str, Any]:
    return {
        "bytes": size,
        "params": params,
        "macs": macs,
        **runtime_score(context, loaded, context.data.test),
        "latency_ms": taken.summary(),
        "threads": taken.threads,
    }


def missed_targets(
    planned: dict[str, Any], after: dict[str, Any], p50_s: float, drop: float
) -> list[str]:
    """A line for each target that the shipped file misses. `drop` is the validation accuracy lost
    against the teacher, 0..1.
    """
    missed = []
    if planned.get("bytes") is not None and after["bytes"] > planned["bytes"]:
        smallest = planned.get("smallest_bytes") or after["bytes"]
        missed.append(
            f"size {after['bytes']} bytes is above the target {planned['bytes']}: the "
            f"smallest reachable is about {format_size(smallest)}"
        )
    if planned.get("macs") is not None and after["macs"] > planned["macs"]:
        missed.append(
            f"{format_count(after['macs'])} MACs are above the target "
            f"{format_count(planned['macs'])}"
        )
    if planned.get("latency_s") is not None and p50_s > planned["latency_s"]:
        missed.append(
            f"p50 latency {p50_s * 1e3:.3g} ms is above the target "
            f"{planned['latency_s'] * 1e3:.3g} ms"
        )
    if planned.get("max_drop") is not None and drop > planned["max_drop"] + 1e-9:
        missed.append(
            f"validation accuracy fell by {drop:.2%}, more than the "
            f"{planned['max_drop']:.2%} allowed"
        )
    return missed
