"""The smaller number formats side by side, and which of them ships."""

from __future__ import annotations

import copy
import math
import shutil
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from edgecompress import checkpoint, files
from edgecompress.errors import EdgecompressError
from edgecompress.export import in_float, lean
from edgecompress.formats import FORMATS, ORDINARY, named
from edgecompress.measure import latency, names, runtime, trials
from edgecompress.measure.bootstrap import Interval
from edgecompress.measure.machine import has_int8_dot, knows_features
from edgecompress.run.context import Context
from edgecompress.run.stage import Stage, StageResult
from edgecompress.run.state import (
    FormatRow,
    Int8Attempt,
    Network,
    Shipped,
    SizePlan,
    StageRow,
    State,
    WeightRow,
)
from edgecompress.stages.common import (
    count,
    finished,
    make_format,
    reads_pixels,
    runtime_outputs,
)
from edgecompress.stages.measure.latency import side_by_side
from edgecompress.stages.plan import PlanStage
from edgecompress.stages.quantize.choose import choose, figures
from edgecompress.stages.quantize.int8 import Int8File, make_int8
from edgecompress.stages.scoring import on_validation, paired

if TYPE_CHECKING:
    from edgecompress.stages.quantize import QuantizeStage

FORMAT_SAMPLES = 150
"""Runs of each of two formats whose latencies are compared."""
MUCH_SLOWER = 1.1
"""A format whose p50 is larger than this factor of fp32's is noted."""
PLANNED_AGAIN = ("plan", "prune", "distill", "export", "quantize")
"""Stages that run again where int8 loses too much and fp16 is planned."""


def quantize(context: Context, settings: QuantizeStage, state: State) -> StageResult:
    """Make every format that may ship, measure bytes, validation accuracy and latency of each, and
    place `model.onnx`.
    """
    if settings.cpu in ("vnni", "arm-dot") and knows_features() and not has_int8_dot():
        context.reporter.note(
            f"--cpu {settings.cpu}: int8 saturates on this processor, so its accuracy and latency "
            "here are not those of the target"
        )
    forms = formats(settings, state.plan)
    if state.grid is None and any(FORMATS[form].is_low for form in forms):
        context.reporter.note(
            f"{forms[-1]}: the network was not trained on its grid, which costs accuracy: give "
            "--qat-epochs"
        )
    if state.grid is not None and state.grid.bits:
        context.reporter.note(
            "the fp32 file has the weights that were trained for fewer bits; before that the "
            f"network had {on_validation(context.data, state.grid.original)} "
            "on validation"
        )
    made = measure_formats(context, settings, state, forms)
    rows, int8 = list(made.rows), made.int8
    ratio = partial(_ratio, context)
    chosen, reason = choose(rows, state.plan, settings, ratio, made.refused)
    shipped = Shipped(tuple(rows), chosen, reason, made.refused)
    state = replace(state, shipped=shipped)
    if int8 is not None and (section := int8.section()):
        state = state.with_section("int8", section)
    missed = _missed(settings, chosen, int8)
    fp32 = next(row for row in rows if row.format == "fp32")
    if chosen.format != "fp32" and chosen.p50_ms > MUCH_SLOWER * fp32.p50_ms:
        context.reporter.note(
            f"{chosen.format} may be slower than fp32 here: in one process p50 "
            f"{chosen.p50_ms:.3f} against {fp32.p50_ms:.3f} ms"
        )
    earlier = state.int8_attempt
    if earlier is not None and earlier.shipped.chosen.accuracy >= chosen.accuracy:
        return _back_to(context, state, earlier)
    lost = fp32.accuracy - chosen.accuracy
    if _loses_too_much(settings, state, chosen):
        return _planned_again(context, settings, state, missed, lost)
    return StageResult(_ship(context, state, chosen, reason), missed=missed)


def _missed(settings: QuantizeStage, chosen: FormatRow, int8: Int8File | None) -> tuple[str, ...]:
    missed = []
    if settings.strict and chosen.float_layers:
        missed.append(f"layers left in float: {', '.join(chosen.float_layers)}")
    if settings.strict and chosen.unpacked_layers:
        missed.append(f"weights unpacked at each run: {', '.join(chosen.unpacked_layers)}")
    if FORMATS[chosen.format].is_integer and int8 is not None and int8.unmet is not None:
        missed.append(int8.unmet)
    return tuple(missed)


def formats(settings: QuantizeStage, plan: SizePlan | None) -> list[str]:
    """Formats to make: fp32 always, as the yardstick; then those of the plan, or those that
    `quantize` allows.
    """
    if plan is not None:
        return list(dict.fromkeys(["fp32", *plan.formats]))
    if settings.quantize == "auto":
        return [*ORDINARY]
    return list(dict.fromkeys(["fp32", named(settings.quantize)]))


@dataclass(frozen=True)
class Made:
    """A row for each format, the int8 file where it is one of them, and the reason for each format
    that has no usable file.
    """

    rows: tuple[FormatRow, ...]
    int8: Int8File | None
    refused: dict[str, str]


@dataclass(frozen=True)
class Written:
    """What is known of a file that was written: where it has integers, how it was made, and how its
    weights are stored.
    """

    int8: Int8File | None
    weights: tuple[WeightRow, ...]


def measure_formats(
    context: Context, settings: QuantizeStage, state: State, forms: list[str]
) -> Made:
    """Make the formats, and measure each that ONNX Runtime can load and run."""
    rows: list[FormatRow] = []
    int8 = None
    refused: dict[str, str] = {}
    outputs: dict[str, Tensor] = {}
    for number, form in enumerate(forms):
        context.reporter.step(number, len(forms), f"make {form}")
        path = context.folder / f"{form}.onnx"
        try:
            made = _made(context, settings, state, form, path)
        except EdgecompressError as error:
            if form == "fp32":
                raise
            path.unlink(missing_ok=True)
            refused[form] = str(error)
            context.reporter.note(f"no {form}: {error}")
            continue
        int8 = made.int8 or int8
        row = _format_row(context, form, path, int8, outputs)
        rows.append(replace(row, weights=made.weights))
        if rows[-1].float_bytes is not None:
            context.reporter.note(not_shrunk(rows[-1], rows[0].bytes))
    return Made(tuple(_timed(context, rows)), int8, refused)


def _made(
    context: Context, settings: QuantizeStage, state: State, form: str, path: Path
) -> Written:
    """Write the file in `form` to `path`. Raises `EdgecompressError` where it cannot be made, or
    ONNX Runtime cannot load and run it.
    """
    fp32 = context.run.root / "model-fp32.onnx"
    int8 = make_int8(context, settings, state, fp32, form) if FORMATS[form].is_integer else None
    proto = int8.proto if int8 is not None else make_format(context, fp32, form)
    stored = lean.write(proto, path).stored
    trials.try_out(path)
    rows = tuple(WeightRow(one.layer, one.bits, one.text, one.bytes) for one in stored)
    return Written(int8, rows)


def _timed(context: Context, rows: list[FormatRow]) -> list[FormatRow]:
    """The rows with their latency, measured in turns."""
    loaded = [runtime.load(context.run.root / row.file, threads=context.threads) for row in rows]
    times = latency.measure(loaded, samples=100, limit_s=2.0)
    timed = zip(rows, times, strict=True)
    return [replace(row, p50_ms=taken.summary()["p50"]) for row, taken in timed]


def _format_row(
    context: Context, form: str, path: Path, int8: Int8File | None, outputs: dict[str, Tensor]
) -> FormatRow:
    """The row of a file, its latency not yet measured. Its outputs (N, K) on validation are put
    into `outputs`, where those of fp32 are.
    """
    size, split = path.stat().st_size, context.data.validation
    loaded = runtime.load(path, threads=context.threads)
    values = outputs[form] = runtime_outputs(context, loaded, split)
    targets = context.data.targets(split)
    row = FormatRow(
        form,
        str(path.relative_to(context.run.root)),
        size,
        context.data.task.score(values, targets),
        p50_ms=0.0,
        against_fp32=paired(context.data.task, outputs["fp32"], values, targets),
    )
    if int8 is None or not FORMATS[form].is_integer:
        return row
    runs = in_float.running(path)
    row = replace(
        row,
        float_layers=tuple(runs.float_layers()),
        unpacked_layers=tuple(runs.unpacked_layers()),
    )
    if size <= in_float.SHRUNK * (context.folder / "fp32.onnx").stat().st_size:
        return row
    return replace(row, float_bytes=in_float.float_tensors(int8.proto))


def not_shrunk(row: FormatRow, before: int) -> str:
    """Why an int8 file is not much smaller than its fp32 of `before` bytes: the tensors that stayed
    in float.
    """
    largest = list((row.float_bytes or {}).items())[:5]
    stayed = ", ".join(f"{name} ({size} bytes)" for name, size in largest)
    stayed = stayed or "no large tensor: the graph itself is the rest"
    return f"{row.format} takes {row.bytes / before:.0%} of the fp32 file; in float stayed {stayed}"


def _ratio(context: Context, first: FormatRow, second: FormatRow) -> Interval:
    """The latency of the first row's file over that of the second's, in fresh processes."""
    paths = [context.run.root / row.file for row in (second, first)]
    loaded = [runtime.load(path, threads=context.threads) for path in paths]
    context.reporter.note(f"measuring {first.format} against {second.format} in fresh processes")
    ratio = side_by_side(paths, loaded, FORMAT_SAMPLES, context.threads).ratio
    low, high = ratio["ci95"]
    return Interval(
        ratio["median"], -math.inf if low is None else low, math.inf if high is None else high
    )


def _loses_too_much(settings: QuantizeStage, state: State, chosen: FormatRow) -> bool:
    """Int8 was planned by `auto`, and clearly loses more accuracy than allowed, for the first
    time.
    """
    automatic = settings.quantize == "auto" and state.plan is not None and state.plan.prune
    first = state.int8_attempt is None
    too_much = chosen.loses_more_than(settings.max_int8_loss)
    return automatic and first and chosen.format == "int8-qdq" and too_much


def _planned_again(
    context: Context, settings: QuantizeStage, state: State, missed: tuple[str, ...], lost: float
) -> StageResult:
    """Plan for fp16 from the unpruned network again; int8's result is kept."""
    context.reporter.note(
        f"int8 clearly loses more than {settings.max_int8_loss:.1%} on validation ({lost:.2%} on "
        f"{len(context.data.validation)} images): planning again for fp16"
    )
    folder, root = context.folder, context.run.root
    checkpoint.save(folder / "int8-model.safetensors", state.need_model(), state.source)
    shutil.copyfile(root / "model-fp32.onnx", folder / "int8-fp32.onnx")
    teacher = state.need_teacher()
    if state.plan is not None and state.shipped is not None:
        kept = str(folder.relative_to(root))
        attempt = Int8Attempt(state.plan, state.shipped, missed, kept)
        state = replace(state, int8_attempt=attempt)
    model = Network(copy.deepcopy(teacher.module), teacher.source, teacher.preprocess)
    stages = tuple(
        _for_fp16(stage) for stage in context.recipe.stages if stage.stage in PLANNED_AGAIN
    )
    return StageResult(replace(state, model=model, prune_plan=None), follow=stages)


def _for_fp16(stage: Stage) -> Stage:
    return stage.model_copy(update={"quantize": "fp16"}) if isinstance(stage, PlanStage) else stage


def _back_to(context: Context, state: State, earlier: Int8Attempt) -> StageResult:
    """fp16 was no better: ship the int8 file that was made before."""
    root = context.run.root
    folder = root / earlier.folder
    source = state.source
    module, _ = checkpoint.load(folder / "int8-model.safetensors", allow_code=source.name)
    files.write_bytes(root / "model-fp32.onnx", (folder / "int8-fp32.onnx").read_bytes())
    notes = checkpoint.notes_for(context.data)
    checkpoint.save(root / "model.safetensors", module, source, notes)
    fp16 = state.shipped.chosen.accuracy if state.shipped is not None else 0.0
    first = earlier.shipped
    reason = f"fp16 was planned too and is no better ({fp16:.4f}): {first.reason}"
    shipped = replace(first, reason=reason)
    state = replace(state, plan=earlier.plan, shipped=shipped)
    state = _ship(context, state.with_model(module), first.chosen, reason)
    return StageResult(state, missed=earlier.missed)


def _ship(context: Context, state: State, chosen: FormatRow, reason: str) -> State:
    """Place `model.onnx`, and add its row."""
    root = context.run.root
    proto = finished(context, root / chosen.file, chosen.accuracy)
    made = context.folder / "model.onnx"
    lean.write(proto, made, like=root / chosen.file)
    size = made.stat().st_size
    if reads_pixels(context):
        trials.try_out(made)  # the preprocessing in the graph is new
    known = names.recorded(made)
    made.replace(root / "model.onnx")
    names.record(root / "model.onnx", known)
    reason = f"{reason} ({figures(chosen, size)})"
    context.reporter.note(reason)
    if state.shipped is not None:
        state = replace(state, shipped=replace(state.shipped, reason=reason))
    name = f"quantize {chosen.format}"
    parameters = count(state.need_model())
    return state.with_row(StageRow(name, chosen.accuracy, parameters, bytes=size, note=reason))
