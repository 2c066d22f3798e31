"""The final figures. The test split's labels are read here, once, for the teacher's file and for
the one that ships.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgecompress.errors import UsageError
from edgecompress.export import lean
from edgecompress.measure import runtime, trials
from edgecompress.measure.cost import Cost, cost
from edgecompress.measure.load import sentence
from edgecompress.measure.runtime import Runtime
from edgecompress.proportions import Paired
from edgecompress.run.context import Context
from edgecompress.run.schema import ControlRow, Figures, Score, Side
from edgecompress.run.stage import StageResult
from edgecompress.run.state import SizePlan, State
from edgecompress.stages.common import make_format, runtime_outputs, runtime_score
from edgecompress.stages.export.work import parity
from edgecompress.stages.measure.latency import SideBySide, side_by_side
from edgecompress.stages.scoring import paired, score_of
from edgecompress.units import format_count, format_size

if TYPE_CHECKING:
    from edgecompress.stages.measure import MeasureStage

HELD_AGAINST_THE_FILE = ("prune", "gradual", "distill")
"""Stages whose missed targets a plan replaces: its limits are checked on the file that ships."""


def measure(context: Context, settings: MeasureStage, state: State) -> StageResult:
    """The figures of both files, and the targets that the shipped one misses."""
    root, model = context.run.root, state.need_model().cpu()
    baseline = state.need_baseline()
    if state.shipped is None or baseline.onnx is None or baseline.bytes is None:
        raise UsageError("stage measure needs a file that ships: put a stage quantize before it")
    files = (root / baseline.onnx, root / "model.onnx")
    loaded = [runtime.load(path, threads=context.threads) for path in files]
    context.reporter.step(1, 4, "latency")
    times = side_by_side(files, loaded, settings.samples, context.threads)
    if times.load["noisy"]:
        context.reporter.note(f"latencies are noisy: {sentence(times.load)}")

    context.reporter.step(2, 4, "accuracy on the test split")
    preprocess = None if state.teacher is None else state.teacher.preprocess
    first = Cost(baseline.params, baseline.macs, ())
    size, costs = runtime.file_bytes(files[1]), cost(model, context.example)
    test = context.data.test
    readers = (context.reading_as(preprocess), context)
    outputs = [runtime_outputs(*side, test) for side in zip(readers, loaded, strict=True)]
    scores = [
        score_of(context.data.task, values, reader.data.targets(test))
        for reader, values in zip(readers, outputs, strict=True)
    ]
    teacher = _side(times, 0, baseline.bytes, first, scores[0])
    student = _side(times, 1, size, costs, scores[1])

    context.reporter.step(3, 4, "parity")
    figures: Figures = {
        "teacher": teacher,
        "student": student,
        "parity": parity(context, model, files[1]).as_dict(),
        "latency_ratio": times.ratio,
        "load": times.load,
    }
    difference = paired(context.data.task, outputs[0], outputs[1], test.labels)
    if difference is not None:
        figures["accuracy_difference"] = difference.as_dict()
    if (control := _control(context, state)) is not None:
        figures["control"] = control
    missed: tuple[str, ...] = ()
    if state.plan is not None:
        drop = baseline.validation_accuracy - state.shipped.chosen.accuracy
        p50_s = times.percentiles[1]["p50"] / 1e3
        sure = None if state.plan.max_drop is None else _on_validation(readers, loaded)
        missed = missed_targets(state.plan, size, costs.macs, p50_s, drop, sure)
        others = state.missed.items()
        kept = {name: texts for name, texts in others if name not in HELD_AGAINST_THE_FILE}
        state = replace(state, missed=kept)
    return StageResult(state.with_figures(figures), missed=missed)


def _side(times: SideBySide, place: int, size: int, costs: Cost, score: Score) -> Side:
    """A file's figures; its score is that of the test split."""
    return {
        "bytes": size,
        "params": costs.params,
        "macs": costs.macs,
        **score,
        "latency_ms": times.percentiles[place],
        "threads": times.threads,
    }


def _control(context: Context, state: State) -> ControlRow | None:
    """The figures of the student that was trained without the teacher, in the format that ships."""
    if state.control is None or state.shipped is None:
        return None
    control = state.control
    fp32 = context.run.root / control.onnx
    path = _as_shipped(context, fp32, state.shipped.chosen.format)
    loaded = runtime.load(path, threads=context.threads)
    score = runtime_score(context, loaded, context.data.test)
    row: ControlRow = {
        "validation_accuracy": control.validation_accuracy,
        "params": control.params,
        "epochs": control.epochs,
        "accuracy": score["accuracy"],
    }
    if "loss" in score:
        row["loss"] = score["loss"]
    if "ci95" in score:
        row["n"], row["ci95"] = score["n"], score["ci95"]
    return row


def _as_shipped(context: Context, fp32: Path, form: str) -> Path:
    """The control's file in the format that ships, so that both are compared alike."""
    if form == "fp32":
        return fp32
    path = fp32.with_name(f"control-{form}.onnx")
    lean.write(make_format(context, fp32, form), path)
    trials.try_out(path)
    return path


def _on_validation(readers: Sequence[Context], loaded: Sequence[Runtime]) -> Paired | None:
    """How the shipped file differs from the teacher's on the validation split, each reading it in
    its own way.
    """
    data = readers[1].data
    first, second = (
        runtime_outputs(reader, one, data.validation)
        for reader, one in zip(readers, loaded, strict=True)
    )
    return paired(data.task, first, second, data.targets(data.validation))


def missed_targets(
    plan: SizePlan,
    size: int,
    macs: int,
    p50_s: float,
    drop: float,
    sure: Paired | None = None,
) -> tuple[str, ...]:
    """A text for each target that a file of `size` bytes, `macs` and latency `p50_s` misses.

    `drop` is the validation accuracy lost against the teacher, 0..1, and `sure` says how sure that
    is. A limit that was given is held against what was measured, as a test would do it.
    """
    missed = []
    if plan.bytes is not None and size > plan.bytes:
        smallest = format_size(plan.smallest_bytes or size)
        missed.append(
            f"size {size} bytes is above the target {plan.bytes}: the smallest reachable is "
            f"about {smallest}"
        )
    if plan.macs is not None and macs > plan.macs:
        missed.append(f"{format_count(macs)} MACs are above the target {format_count(plan.macs)}")
    if plan.latency_s is not None and p50_s > plan.latency_s:
        missed.append(
            f"p50 latency {p50_s * 1e3:.3g} ms is above the target {plan.latency_s * 1e3:.3g} ms"
        )
    if plan.max_drop is not None and drop > plan.max_drop + 1e-9:
        missed.append(
            f"validation accuracy fell by {drop:.2%}{_how_sure(sure)}, more than the "
            f"{plan.max_drop:.2%} allowed"
        )
    return tuple(missed)


def _how_sure(difference: Paired | None) -> str:
    """` (95 % 0.20 to 1.86, n 359)`, of what was lost."""
    if difference is None:
        return ""
    low, high = difference.interval
    return f" (95 % {-100 * high:.2f} to {-100 * low:.2f}, n {difference.n})"
