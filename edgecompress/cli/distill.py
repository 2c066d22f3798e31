"""`edgecompress distill TEACHER STUDENT`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from edgecompress.cli.checkpoints import checkpoint_in, source
from edgecompress.cli.options import DATA, RUN, TIME, Given, options_of, verb
from edgecompress.errors import UsageError
from edgecompress.stages.distill import DistillStage
from edgecompress.stages.fields import Training
from edgecompress.stages.quantize import QuantizeStage

OF_TRAINING = tuple(Training.model_fields)
DISTILLATION = options_of(DistillStage, "Distillation", without=OF_TRAINING)
TRAINING = options_of(DistillStage, "Training", only=[o.field for o in options_of(Training, "")])
FORMAT = options_of(QuantizeStage, "Number format", only=("quantize",))

Teacher = Annotated[
    str,
    typer.Argument(
        help="checkpoint or run folder of a trained network; with --mode online also a model's name"
    ),
]
Student = Annotated[
    str, typer.Argument(help="a model's name, or the checkpoint of a (pruned) network")
]
StudentModel = Annotated[
    str | None,
    typer.Option("--model", help="for a student in a file of tensors: the network they belong to"),
]
TeacherModel = Annotated[
    str | None,
    typer.Option("--teacher-model", help="the teacher's own code (file.py:factory), named again"),
]


@verb(DISTILLATION, TRAINING, FORMAT, DATA, TIME, RUN)
def distill(
    teacher: Teacher,
    student: Student,
    given: Given,
    model: StudentModel = None,
    teacher_model: TeacherModel = None,
) -> None:
    """Train a small network on the logits of a trained one, and write it as ONNX.

    Example: edgecompress distill runs/teacher student3 --data folder:photos --control
    """
    learner, name = _student(student, model)
    form = None if "quantize" in given else "none"
    stages = [
        _teacher(teacher, teacher_model, given["mode"]),
        learner,
        given.draft(DistillStage),
        {"stage": "simplify"},
        {"stage": "export"},
        given.draft(QuantizeStage, quantize=form),
        {"stage": "measure"},
    ]
    given.launch("distill", stages, model=name, checkpoint=_trained(stages[0]))


def _trained(stage: Mapping[str, object]) -> Path | None:
    """The teacher's checkpoint, where it has one."""
    path = stage.get("checkpoint")
    return None if path is None else Path(str(path))


def _teacher(teacher: str, model: str | None, mode: str) -> Mapping[str, object]:
    """The stage that brings the teacher: a checkpoint, or where it trains a model by name."""
    from edgecompress.models import model_names

    if mode != "offline" and (not Path(teacher).exists() or teacher in model_names()):
        return {"stage": "teacher", "model": teacher, "epochs": 0}
    return {"stage": "teacher", "checkpoint": checkpoint_in(Path(teacher)), "model": model}


def _student(student: str, model: str | None) -> tuple[Mapping[str, object], str]:
    """The stage that brings the student, and its model."""
    from edgecompress.models import model_names

    if Path(student).exists() and student not in model_names():
        return source(Path(student), model)
    if model is not None:
        raise UsageError(
            f"--model {model} names the network of a student in a file, and student "
            f"'{student}' is no file: leave --model out"
        )
    return {"stage": "train", "epochs": 0}, student
