"""Stages `export` and `quantize`: the fp32 file, its smaller formats side by side, and which of
them ships.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgecompress import checkpoint, files
from edgecompress.core import layers
from edgecompress.core.simplify import fold_batchnorm
from edgecompress.errors import EdgecompressError
from edgecompress.export import onnx as onnx_export
from edgecompress.export import quantize as quantizer
from edgecompress.measure import latency, runtime
from edgecompress.pipeline import Context, State
from edgecompress.settings import ExportStage, QuantizeStage
from edgecompress.stages.common import (
    FORMAT_OF,
    arrays,
    count,
    file_accuracy,
    finished,
    fp32_file,
    make_format,
    validation_accuracy,
    with_row,
)
from edgecompress.stages.int8 import make_int8

EXPORT_TOLERANCE = 1e-4


def parity(
    context: Context, model: torch.nn.Module, path: Path, limit: int = 4000
) -> dict[str, Any]:
    """Largest |difference of logits| and share of equal top-1 classes between `model` and the file,
    over the data's images.

    All images of all splits are compared (at most `limit`, evenly spread), in batches of 32, and
    the first 8 also as 1 + 7. No label is read.
    """
    loaded = runtime.load(path, threads=context.threads)
    data, worst, equal, seen = context.data, 0.0, 0, 0
    model = model.cpu().eval()
    for split in (data.validation, data.test, data.train):
        room = max(0, limit - seen)
        pairs = (
            zip(
                arrays(context, split, room),
                arrays(context, split, room, pixels=loaded.reads_pixels),
                strict=True,
            )
            if room
            else ()
        )
        for images, batch in pairs:
            with torch.no_grad():
                expected = model(torch.from_numpy(images)).numpy()
            found = runtime.check_finite(loaded.run(batch))
            if seen == 0:
                single = np.concatenate([loaded.run(batch[:1]), loaded.run(batch[1:8])])
                worst = float(np.abs(single - expected[:8]).max())
            worst = max(worst, float(np.abs(found - expected).max()))
            equal += int((found.argmax(1) == expected.argmax(1)).sum())
            seen += len(batch)
    agreed = (
        equal / seen if data.task.metric == "accuracy" else None
    )  # a regression has no classes to agree on
    return {"max_abs_logit_diff": worst, "top1_agreement": agreed, "samples": seen}


def export(context: Context, _: ExportStage, state: State) -> State:
    """`model.safetensors` and `model-fp32.onnx` (BatchNorm folded), which must agree to float
    tolerance.
    """
    model = state.need_model().cpu().eval()
    root = context.run.root
    context.folder.mkdir(parents=True, exist_ok=True)
    made, path = context.folder / "made.onnx", root / "model-fp32.onnx"
    accuracy = validation_accuracy(context, model)
    onnx_export.save(fp32_file(context, model, accuracy), made)
    if "quantize" not in {stage.stage for stage in context.recipe.stages}:
        onnx_export.save(finished(context, made, accuracy), made)
    agreed = parity(context, model, made, limit=256)
    with torch.no_grad():
        scale = float(
            model(context.data.normalised(context.data.validation.pixels[:64])).abs().max()
        )
    if not agreed["max_abs_logit_diff"] <= EXPORT_TOLERANCE * max(1.0, scale):
        raise EdgecompressError(
            f"the exported file differs from the network by {agreed['max_abs_logit_diff']:g} "
            "in a logit (allowed "
            f"{EXPORT_TOLERANCE * max(1.0, scale):g}): do not ship it; please report this network"
        )
    made.replace(path)
    checkpoint.save(
        root / "model.safetensors", model, state.source, checkpoint.notes_for(context.data)
    )
    folded = sum(isinstance(m, layers.BatchNorm) for m in model.modules())
    folded -= sum(isinstance(m, layers.BatchNorm) for m in fold_batchnorm(model).modules())
    note = (
        f"{folded} BatchNorm folded; largest change of a logit {agreed['max_abs_logit_diff']:.1e}"
    )
    state = state.with_numbers(export={"bytes": path.stat().st_size, **agreed})
    return with_row(
        state,
        "export fp32",
        accuracy,
        count(model),
        lossless=True,
        bytes=path.stat().st_size,
        note=note,
    )


def quantize(context: Context, settings: QuantizeStage, state: State) -> State:
    """Make every format that may ship, measure bytes, validation accuracy and latency of each, and
    place `model.onnx`.
    """
    forms = formats(settings, state.numbers.get("plan"))
    rows, told = measure_formats(context, settings, state, forms)
    chosen, why = choose(rows, state.numbers.get("plan"), settings)
    fp32 = next(r for r in rows if r["format"] == "fp32")
    lost = fp32["accuracy"] - chosen["accuracy"]
    state = state.with_numbers(
        formats=rows, chosen={**chosen, "reason": why}, **({"int8": told} if told else {})
    )
    if settings.strict and chosen["float_layers"]:
        state = state.with_numbers(
            left_float=f"layers left in float: {', '.join(chosen['float_layers'])}"
        )
    if chosen["format"] == "int8-qdq" and "drop_unmet" in told:
        state = state.with_numbers(drop_unmet=told["drop_unmet"])
    if chosen["format"] != "fp32" and chosen["p50_ms"] > 1.1 * fp32["p50_ms"]:
        context.reporter.note(
            f"{chosen['format']} is slower than fp32 here: p50 {chosen['p50_ms']:.3f} "
            f"against {fp32['p50_ms']:.3f} ms"
        )
    earlier = state.numbers.get("int8_attempt")
    if earlier is not None and earlier["chosen"]["accuracy"] >= chosen["accuracy"]:
        return _back_to(context, state, earlier)
    again = _replan(context, settings, state, chosen, lost)
    if again is not None:
        return again
    return _ship(context, state, chosen, why)


def formats(settings: QuantizeStage, planned: dict[str, Any] | None) -> list[str]:
    """Formats to make: fp32 always, as the yardstick; then those of the plan, or those that
    `quantize` allows.
    """
    if planned is not None:
        return list(dict.fromkeys(["fp32", *planned["formats"]]))
    return (
        ["fp32", "fp16", "int8-qdq"]
        if settings.quantize == "auto"
        else list(dict.fromkeys(["fp32", FORMAT_OF[settings.quantize]]))
    )


def measure_formats(
    context: Context, settings: QuantizeStage, state: State, forms: list[str]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A row for each format (file, bytes, validation accuracy, p50 in ms, layers left in float),
    and what `make_int8` tells.
    """
    fp32 = context.run.root / "model-fp32.onnx"
    rows: list[dict[str, Any]] = []
    paths, told = [], dict[str, Any]()
    for form in forms:
        context.reporter.step(len(rows), len(forms), f"make {form}")
        path = fp32 if form == "fp32" else context.folder / f"{form}.onnx"
        if form == "int8-qdq":
            proto, told = make_int8(context, settings, state, fp32)
        else:
            proto = make_format(context, fp32, form)
        if form != "fp32":
            onnx_export.save(proto, path)
        rows.append(
            {
                "format": form,
                "file": str(path.relative_to(context.run.root)),
                "bytes": path.stat().st_size,
                "accuracy": file_accuracy(context, path, context.data.validation),
                "float_layers": quantizer.float_layers(path) if form == "int8-qdq" else [],
            }
        )
        if form == "int8-qdq" and path.stat().st_size > quantizer.SHRUNK * fp32.stat().st_size:
            rows[-1]["float_bytes"] = quantizer.float_tensors(proto)
            context.reporter.note(not_shrunk(rows[-1], fp32.stat().st_size))
        paths.append(path)
    taken = latency.measure(
        [runtime.load(p, threads=context.threads) for p in paths], samples=100, limit_s=2.0
    )
    return [
        {**row, "p50_ms": times.summary()["p50"]} for row, times in zip(rows, taken, strict=True)
    ], told


def not_shrunk(row: dict[str, Any], before: int) -> str:
    """Why an int8 file is not much smaller than its fp32, in words: the tensors that stayed in
    float.
    """
    stayed = ", ".join(
        f"{name} ({size} bytes)" for name, size in list(row["float_bytes"].items())[:5]
    )
    stayed = stayed or "no large tensor: the graph itself is the rest"
    return f"int8 takes {row['bytes'] / before:.0%} of the fp32 file; in float stayed {stayed}"


def choose(
    rows: list[dict[str, Any]], planned: dict[str, Any] | None, settings: QuantizeStage
) -> tuple[dict[str, Any], str]:
    """The row that ships, and why, in words.

    Among the formats that may ship: those within the byte target; of these, those whose validation
    accuracy is within `max_drop` (or else `max_int8_loss`) of the best; of these, the fastest file
    when it is clearly so (10 %), else the smallest.
    """
    allowed = rows if planned is None else [r for r in rows if r["format"] in planned["formats"]]
    if planned is None and settings.quantize != "auto":
        allowed = [r for r in rows if r["format"] == FORMAT_OF[settings.quantize]]
    limit = (planned or {}).get("bytes")
    fitting = [r for r in allowed if limit is None or r["bytes"] <= limit] or allowed
    best = max(r["accuracy"] for r in fitting)
    loss = settings.max_int8_loss if settings.max_drop is None else settings.max_drop
    good = [r for r in fitting if r["accuracy"] >= best - loss] or fitting
    fastest = min(good, key=lambda r: r["p50_ms"])
    smallest = min(good, key=lambda r: r["bytes"])
    chosen = smallest if fastest["p50_ms"] > 0.9 * smallest["p50_ms"] else fastest
    if len(allowed) == 1:
        why = f"{chosen['format']} was planned"
    elif len(good) == 1:
        why = f"{chosen['format']} alone fits and keeps its accuracy"
    else:
        why = (
            f"{chosen['format']} is the {'fastest' if chosen is fastest else 'smallest'} "
            "within "
            f"{loss:.1%} of the best"
        )
    measured = (
        f"{chosen['bytes']} bytes, accuracy {chosen['accuracy']:.4f} on validation, p50 "
        f"{chosen['p50_ms']:.3f} ms"
    )
    return chosen, f"{why} ({measured})"


def _replan(
    context: Context, settings: QuantizeStage, state: State, chosen: dict[str, Any], lost: float
) -> State | None:
    """Where int8 was planned by `auto` and loses too much, plan for fp16 from the unpruned network
    again; int8's result is kept.
    """
    planned = state.numbers.get("plan")
    automatic = settings.quantize == "auto" and planned is not None and planned["prune"]
    if (
        not automatic
        or "int8_attempt" in state.numbers
        or chosen["format"] != "int8-qdq"
        or lost <= settings.max_int8_loss
    ):
        return None
    context.reporter.note(
        f"int8 loses {lost:.2%} on validation, more than {settings.max_int8_loss:.1%}: "
        "planning again for fp16"
    )
    stages = [
        s.model_dump(mode="json")
        for s in context.recipe.stages
        if s.stage in ("plan", "prune", "distill", "export", "quantize")
    ]
    for stage in stages:
        if stage["stage"] == "plan":
            stage["quantize"] = "fp16"
            if stage["targets"].get("bytes") is not None:
                stage["targets"]["bytes"] = f"{stage['targets']['bytes']}B"
    attempt = {
        "chosen": state.numbers["chosen"],
        "formats": state.numbers["formats"],
        "plan": planned,
        "folder": str(context.folder.relative_to(context.run.root)),
    }
    checkpoint.save(context.folder / "int8-model.safetensors", state.need_model(), state.source)
    shutil.copyfile(context.run.root / "model-fp32.onnx", context.folder / "int8-fp32.onnx")
    return replace(state, model=state.teacher).with_numbers(
        int8_attempt=attempt, next_stages=stages
    )


def _back_to(context: Context, state: State, earlier: dict[str, Any]) -> State:
    """fp16 was no better: ship the int8 file made before."""
    folder = context.run.root / earlier["folder"]
    model, _ = checkpoint.load(folder / "int8-model.safetensors", allow_code=state.source.name)
    files.write_bytes(
        context.run.root / "model-fp32.onnx", (folder / "int8-fp32.onnx").read_bytes()
    )
    checkpoint.save(
        context.run.root / "model.safetensors",
        model,
        state.source,
        checkpoint.notes_for(context.data),
    )
    why = (
        f"fp16 was planned too and is no better ({state.numbers['chosen']['accuracy']:.4f}): "
        f"{earlier['chosen']['reason']}"
    )
    state = replace(state, model=model).with_numbers(
        formats=earlier["formats"],
        plan=earlier["plan"],
        chosen={**earlier["chosen"], "reason": why},
    )
    return _ship(context, state, earlier["chosen"], why)


def _ship(context: Context, state: State, chosen: dict[str, Any], why: str) -> State:
    root = context.run.root
    size = onnx_export.save(
        finished(context, root / chosen["file"], chosen["accuracy"]), root / "model.onnx"
    )
    context.reporter.note(why)
    model = state.need_model()
    return with_row(
        state,
        f"quantize {chosen['format']}",
        chosen["accuracy"],
        count(model),
        bytes=size,
        note=why,
    )
