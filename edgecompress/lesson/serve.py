"""The teacher's end of a lesson."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from edgecompress import checkpoint, files, interrupts
from edgecompress.data import DataSet
from edgecompress.errors import UsageError
from edgecompress.lesson.networks import LessonNetwork, network
from edgecompress.lesson.score import FinalScore, final_score
from edgecompress.lesson.settings import (
    CutFacts,
    Cutting,
    Lesson,
    cut_facts,
)
from edgecompress.measure import machine
from edgecompress.methods.teacher import digest
from edgecompress.online.secure import Tls
from edgecompress.online.teacher import Teacher, serve
from edgecompress.stages.common import count
from edgecompress.stages.gradual.work import Shrinking
from edgecompress.train.settings import FitSettings


@dataclass(frozen=True)
class Service:
    """How a lesson is served: does the teacher `train`, for how many students, how long it waits
    for them in seconds, how its network is cut, and whether it resumes from the states in `output`.
    """

    output: Path
    train: bool = False
    students: int = 1
    timeout_s: float | None = None
    cutting: Cutting | None = None
    resume: bool = False


class Taught(FinalScore):
    """What was taught, and how good the teacher is on the test split (None without data)."""

    schema: int
    command: str
    model: str
    data: str
    data_label: str
    seed: int
    trained: bool
    students: list[str]
    steps: int
    params: int


class ServedLesson(Taught, CutFacts):
    """The teacher's `result.json`. Bytes are those since it resumed, where it did."""

    resumed: bool
    payload_bytes: int
    wire_bytes: int
    wall_s: float
    hardware: dict[str, object]
    versions: dict[str, str]


@interrupts.listening(signal.SIGTERM)
def serve_lesson(
    lesson: Lesson,
    model: str,
    address: str,
    tls: Tls | None,
    service: Service,
    *,
    ready: Callable[[int], None],
    note: Callable[[str], None],
) -> ServedLesson:
    """Serve one lesson, to its end; writes `model.safetensors` and `result.json` into the output.
    `ready` gets the port.

    When it resumes, the result has `resumed`, and its bytes are those since. Data `none` are enough
    for a frozen teacher that is sent all pixels.
    """
    data = _data(lesson, service, note)
    taught = network(model, data, lesson.begins_with("teacher"))
    data = None if data is None else replace(data, preprocess=taught.preprocess)
    settings = lesson.settings(taught, data) if service.train and data is not None else None
    cuts = _cuts(lesson, service, taught, data, settings)
    before = count(taught.model)
    teacher = _teacher(service, taught, data, settings, cuts, note)
    server, port = serve(teacher, address, tls)
    start = time.perf_counter()
    try:
        ready(port)
        teacher.teach(service.timeout_s)
    finally:
        server.stop(2.0).wait()
    result: ServedLesson = {
        **_scores(lesson, service, teacher, taught, data),
        **cut_facts(cuts, teacher.result, before),
        "resumed": service.resume,
        "payload_bytes": teacher.payload_bytes,
        "wire_bytes": teacher.wire_bytes,
        "wall_s": time.perf_counter() - start,
        "hardware": machine.hardware(),
        "versions": machine.versions(),
    }
    if data is not None:
        path, notes = service.output / "model.safetensors", checkpoint.notes_for(data)
        checkpoint.save(path, teacher.model, taught.source, notes)
    files.write_json(service.output / "result.json", result)
    return result


def _data(lesson: Lesson, service: Service, note: Callable[[str], None]) -> DataSet | None:
    """The data of the lesson. Raises `UsageError` for what cannot be served."""
    if service.cutting is not None and not service.train:
        amount = service.cutting.amount
        raise UsageError(f"--prune {amount} cuts a teacher that trains: give --train too")
    if lesson.data == "none":
        if service.train:
            raise UsageError("--train needs data: give --data")
        return None
    return lesson.load(note)


def _cuts(
    lesson: Lesson,
    service: Service,
    taught: LessonNetwork,
    data: DataSet | None,
    settings: FitSettings | None,
) -> Shrinking | None:
    if service.cutting is None or data is None or settings is None:
        return None
    return service.cutting.plan(taught.model, data, settings, lesson.seed)


def _teacher(
    service: Service,
    taught: LessonNetwork,
    data: DataSet | None,
    settings: FitSettings | None,
    cuts: Shrinking | None,
    note: Callable[[str], None],
) -> Teacher:
    own = {
        "weights": digest(taught.model),
        "cutting": asdict(service.cutting) if service.cutting else None,
        "rate": settings.learning_rate if settings else None,
    }
    return Teacher(
        taught.model,
        data,
        preprocess=taught.preprocess,
        classes=taught.source.num_classes,
        train=settings,
        students=service.students,
        states=service.output / "kept",
        own=own,
        resume=service.resume,
        cut=cuts.hooks if cuts else None,
        note=note,
    )


def _scores(
    lesson: Lesson,
    service: Service,
    teacher: Teacher,
    taught: LessonNetwork,
    data: DataSet | None,
) -> Taught:
    return {
        "schema": 1,
        "command": "teacher",
        "model": taught.source.name,
        "data": lesson.data,
        "data_label": data.label if data else "no data",
        "seed": lesson.seed,
        "trained": service.train,
        "students": sorted(teacher.sessions),
        **final_score(teacher.model, data),
        "steps": teacher.steps,
        "params": count(teacher.model),
    }
