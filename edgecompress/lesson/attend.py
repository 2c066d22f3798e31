"""The student's end of a lesson."""

from __future__ import annotations

import secrets
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from torch import nn

from edgecompress import checkpoint, files, interrupts
from edgecompress.data import DataSet
from edgecompress.errors import UsageError
from edgecompress.lesson.networks import LessonNetwork, network
from edgecompress.lesson.score import FinalScore, final_score
from edgecompress.lesson.settings import (
    CutFacts,
    Learning,
    Lesson,
    cut_facts,
)
from edgecompress.measure import machine
from edgecompress.methods.features import map_ends
from edgecompress.methods.teacher import digest
from edgecompress.models.registry import ModelSource, build
from edgecompress.online.checks import check_options
from edgecompress.online.plan import Plan, label_of, shape_of, values_of
from edgecompress.online.progress import Tally, TimelineRow
from edgecompress.online.secure import Tls
from edgecompress.online.store import Label, StateStore
from edgecompress.online.student import Student
from edgecompress.stages.common import count
from edgecompress.stages.gradual.work import Shrinking
from edgecompress.stages.scoring import on_validation
from edgecompress.train.fit import FitResult
from edgecompress.train.history import EpochRow
from edgecompress.train.settings import FitSettings


@dataclass(frozen=True)
class Attendance:
    """How a student attends: what is exchanged and how it is encoded, under which name and in which
    run, how often states are kept, how many steps are under way, how long it looks for a teacher
    that is away (seconds), and whether it resumes from the state in `output`.
    """

    output: Path
    exchange: str = "logits"
    codec: str = "fp16"
    name: str = "student"
    run: str | None = None
    teacher_model: str | None = None
    keep_every: int = 50
    window: int = 64
    patience_s: float = 60.0
    resume: bool = False

    @property
    def states(self) -> Path:
        """The folder of kept states."""
        return self.output / "kept"

    def check(self, learning: Learning) -> None:
        """Raises `UsageError` for ways that exclude each other."""
        learning.check(self.exchange)
        if (self.exchange == "weights") != (self.teacher_model is not None):
            raise UsageError(
                "--exchange weights and --teacher-model, the name of the network whose weights "
                "come, go together"
            )


class Learned(FinalScore):
    """How the student learned, and how good it is on the test split. `codec` is None where weights
    travel, `staleness` (steps) without mutual learning.
    """

    schema: int
    command: str
    model: str
    data: str
    data_label: str
    seed: int
    run: str
    name: str
    exchange: str
    codec: str | None
    features: str | None
    mutual: bool
    staleness: int | None
    params: int


class MedianAndTail(TypedDict):
    """Percentiles of a duration, in milliseconds."""

    p50: float
    p99: float


class Tallied(TypedDict):
    """What a lesson took: bytes of payload and on the wire, and the parts of a step."""

    steps: int
    samples: int
    breaks: int
    payload_bytes: int
    wire_bytes: int
    bytes_per_sample: float
    step_ms: MedianAndTail
    wait_ms: MedianAndTail
    compute_ms: MedianAndTail
    steps_per_s: float
    timeline: list[TimelineRow]


class AttendedLesson(Learned, CutFacts, Tallied):
    """The student's `result.json`."""

    validation_accuracy: float
    epochs: int
    batch_size: int
    wall_s: float
    hardware: dict[str, object]
    versions: dict[str, str]


@interrupts.listening(signal.SIGTERM)
def attend_lesson(
    lesson: Lesson,
    model: str,
    target: str,
    tls: Tls | None,
    attendance: Attendance,
    learning: Learning,
    *,
    on_epoch: Callable[[EpochRow, str], None],
    note: Callable[[str], None],
) -> AttendedLesson:
    """Attend one lesson; writes `model.safetensors`, `history.csv` and `result.json` into the
    output, and keeps its state below `kept/`.

    When it resumes it continues from the state there. Raises `UsageError` when that is of another
    lesson.
    """
    attendance.check(learning)
    known = StateStore(attendance.states).label() if attendance.resume else None
    data = lesson.load(note)
    learner = network(model, data, lesson.begins_with(f"student {attendance.name}"))
    data = replace(data, preprocess=learner.preprocess)
    settings = lesson.settings(learner, data)
    run = attendance.run or (str(known["plan"]["run"]) if known else secrets.token_hex(4))
    plan = _plan(lesson, run, attendance, learning, learner, data, settings)
    check_options(plan)
    _claim_states(plan, attendance, learning, learner, settings, known)

    cuts = None
    if learning.cutting is not None:
        cuts = learning.cutting.plan(learner.model, data, settings, lesson.seed)
    ending = _Ending(lesson, attendance, plan, learner, data, cuts, count(learner.model))

    def report_epoch(row: EpochRow) -> None:
        on_epoch(row, on_validation(data, row.validation_accuracy))

    student = _student(
        attendance, learning, plan, learner, data, settings, cuts, report_epoch, note
    )
    return ending.attend(student, target, tls)


def _plan(
    lesson: Lesson,
    run: str,
    attendance: Attendance,
    learning: Learning,
    learner: LessonNetwork,
    data: DataSet,
    settings: FitSettings,
) -> Plan:
    """What the student proposes to the teacher."""
    by_maps = attendance.exchange == "features"
    return Plan(
        run,
        attendance.exchange,
        attendance.codec,
        lesson.seed,
        settings.epochs,
        settings.batch_size,
        len(data.train),
        len(data.classes),
        lesson.data,
        data.digest(),
        values_of(settings.augmentation or data.augmentation),
        settings.view_seed,
        **shape_of(data),
        keep_every=attendance.keep_every,
        window=attendance.window,
        features=(learning.features or "attention") if by_maps else "",
        maps=_map_sizes(learner.model, data) if by_maps else [],
        mutual=learning.mutual,
        staleness=learning.staleness,
    )


def _map_sizes(model: nn.Module, data: DataSet) -> list[list[int]]:
    """Heights and widths of the feature maps that are compared."""
    example = torch.zeros(1, *data.image_shape)
    return [list(size) for size in map_ends(model, example).values()]


def _claim_states(
    plan: Plan,
    attendance: Attendance,
    learning: Learning,
    learner: LessonNetwork,
    settings: FitSettings,
    known: Label | None,
) -> None:
    """Label the folder of states as this lesson's. Raises `UsageError` for those of another."""
    own = {
        "weights": digest(learner.model),
        "rate": settings.learning_rate,
        "teacher_model": attendance.teacher_model,
        **asdict(learning),
    }
    label = label_of(plan, own)
    if known is not None and known != label:
        raise UsageError(
            f"'{attendance.output}' holds a lesson with {_difference(known, label)}: give the same "
            "options, or --exist-ok to begin anew"
        )
    store = plan.store(attendance.states)
    if not attendance.resume:
        store.clear()
    store.claim(label)


def _student(
    attendance: Attendance,
    learning: Learning,
    plan: Plan,
    learner: LessonNetwork,
    data: DataSet,
    settings: FitSettings,
    cuts: Shrinking | None,
    on_epoch: Callable[[EpochRow], None],
    note: Callable[[str], None],
) -> Student:
    mentor = None
    if attendance.teacher_model is not None:
        source = ModelSource(attendance.teacher_model, len(data.classes), data.image_shape)
        mentor = build(source)
    weight = learning.feature_weight
    return Student(
        learner.model,
        data,
        settings,
        plan,
        name=attendance.name,
        states=attendance.states,
        loss=learning.loss,
        temperature=learning.temperature,
        alpha=learning.alpha,
        feature_weight=1.0 if weight is None else weight,
        cut=cuts.hooks if cuts else None,
        on_epoch=on_epoch,
        note=note,
        mentor=mentor,
    )


@dataclass(frozen=True)
class _Ending:
    """Writes the result of a lesson, before the teacher learns that it is over."""

    lesson: Lesson
    attendance: Attendance
    plan: Plan
    learner: LessonNetwork
    data: DataSet
    cuts: Shrinking | None
    before: int

    def attend(self, student: Student, target: str, tls: Tls | None) -> AttendedLesson:
        """Attend the lesson at `target`; its result."""
        start = time.perf_counter()
        results: list[AttendedLesson] = []

        def finished(fitted: FitResult) -> None:
            results.append(self._written(student, fitted, start))

        student.attend(target, tls, self.attendance.patience_s, finished)
        return results[-1]

    def _written(self, student: Student, fitted: FitResult, start: float) -> AttendedLesson:
        result: AttendedLesson = {
            **self._facts(fitted),
            **cut_facts(self.cuts, fitted, self.before),
            "validation_accuracy": fitted.best.validation_accuracy,
            "epochs": self.plan.epochs,
            "batch_size": self.plan.batch_size,
            **tallied(student.tally),
            "wall_s": time.perf_counter() - start,
            "hardware": machine.hardware(),
            "versions": machine.versions(),
        }
        output, notes = self.attendance.output, checkpoint.notes_for(self.data)
        checkpoint.save(output / "model.safetensors", fitted.model, self.learner.source, notes)
        files.write_csv(output / "history.csv", [row.as_dict() for row in fitted.history])
        files.write_json(output / "result.json", result)
        return result

    def _facts(self, fitted: FitResult) -> Learned:
        plan = self.plan
        return {
            "schema": 1,
            "command": "student",
            "model": self.learner.source.name,
            "data": self.lesson.data,
            "data_label": self.data.label,
            "seed": self.lesson.seed,
            "run": plan.run,
            "name": self.attendance.name,
            "exchange": plan.exchange,
            "codec": None if plan.exchange == "weights" else plan.codec,
            **final_score(fitted.model, self.data),
            "features": plan.features or None,
            "mutual": plan.mutual,
            "staleness": plan.staleness if plan.mutual else None,
            "params": count(fitted.model),
        }


def _difference(known: Label, label: Label) -> str:
    """Which values of two labels differ."""
    parts = ((known["plan"], label["plan"]), (known["own"], label["own"]))
    names = sorted(
        key for then, now in parts for key, value in now.items() if then.get(key) != value
    )
    return f"another {', '.join(names)}"


def tallied(tally: Tally) -> Tallied:
    """What a lesson took, as JSON values."""

    def percentiles(values: list[float]) -> MedianAndTail:
        p50, p99 = (round(float(np.percentile(values, q)), 3) for q in (50, 99))
        return {"p50": p50, "p99": p99}

    compute = [step - wait for step, wait in zip(tally.step_ms, tally.wait_ms, strict=True)]
    return {
        "steps": tally.steps,
        "samples": tally.samples,
        "breaks": tally.breaks,
        "payload_bytes": tally.payload_bytes,
        "wire_bytes": tally.wire_bytes,
        "bytes_per_sample": tally.payload_bytes / max(1, tally.samples),
        "step_ms": percentiles(tally.step_ms),
        "wait_ms": percentiles(tally.wait_ms),
        "compute_ms": percentiles(compute),
        "steps_per_s": 1e3 * len(tally.step_ms) / max(1e-9, sum(tally.step_ms)),
        "timeline": tally.timeline,
    }
