"""`edgecompress teacher serve` and `edgecompress student run`: distillation between two
machines.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import Field

from edgecompress.cli.console import print_json, print_line, stderr
from edgecompress.cli.grouped import GroupedCommand
from edgecompress.cli.options import Given, RunOptions, options_of, verb
from edgecompress.errors import UsageError
from edgecompress.proportions import shown
from edgecompress.run.stage import RunSettings, Strict
from edgecompress.run.values import (
    Above0,
    Amount,
    Natural,
    Positive,
    Seconds,
    Share,
    Side,
    Threads,
)
from edgecompress.stages.distill import DistillStage
from edgecompress.stages.fields import (
    BatchSize,
    Loss,
    Maps,
    Schedule,
    Training,
    Weight,
    flag,
    like,
)

if TYPE_CHECKING:
    from edgecompress.lesson import Attendance, Cutting, Learning, Lesson
    from edgecompress.lesson.attend import AttendedLesson
    from edgecompress.lesson.serve import ServedLesson
    from edgecompress.online.secure import Tls

teacher_app = typer.Typer(
    help="The teacher's end of a lesson between two machines.", no_args_is_help=True
)
student_app = typer.Typer(
    help="The student's end of a lesson between two machines.", no_args_is_help=True
)


class LessonOptions(Strict):
    """What both ends take."""

    data: str = like(RunSettings, "data")
    image_size: Side | None = None
    """Side of the square images that the network reads; default: as they are, or 224 where they
    have several sizes.
    """
    epochs: Natural | None = like(Training, "epochs")
    batch_size: BatchSize | None = like(Training, "batch_size")
    learning_rate: Above0 | None = like(Training, "learning_rate")
    prune: Amount | None = None
    """Cut the network while it trains: 50%, 2Mparams, 4MB."""
    step: Share = like(DistillStage, "step")
    schedule: Schedule = like(DistillStage, "schedule")
    tls_ca: Path | None = None
    """Certificate of the authority (PEM)."""
    tls_cert: Path | None = None
    """Own certificate (PEM)."""
    tls_key: Path | None = None
    """Own key (PEM)."""
    insecure: bool = False
    """No TLS: everyone on the way can read and change what is sent."""
    seed: Natural = like(RunSettings, "seed")
    threads: Threads | None = like(RunSettings, "threads")
    output: Path | None = flag(("-o", "--output"), None)
    """Folder of the lesson."""
    resume: bool = False
    """Continue the lesson in -o."""
    exist_ok: bool = like(RunOptions, "exist_ok")
    as_json: bool = like(RunOptions, "as_json")
    quiet: bool = like(RunOptions, "quiet")
    debug: bool = like(RunOptions, "debug")

    def tls(self) -> Tls | None:
        """The certificates. Raises `UsageError` where some are missing."""
        from edgecompress.online.secure import chosen

        return chosen(self.tls_ca, self.tls_cert, self.tls_key, self.insecure)

    def lesson(self) -> Lesson:
        """The lesson that both ends have in common."""
        from edgecompress.lesson import Lesson

        return Lesson(
            self.data,
            self.image_size,
            self.epochs,
            self.batch_size,
            self.learning_rate,
            self.seed,
            self.threads,
        )

    def cutting(self) -> Cutting | None:
        """How the network is cut while it trains; None where it is not."""
        from edgecompress.lesson import Cutting

        return None if self.prune is None else Cutting(self.prune, self.step, self.schedule)

    def folder(self, command: str, model: str) -> Path:
        """The folder of the lesson. Raises `UsageError` for one in use."""
        from edgecompress.run.directory import default_root

        root = self.output or default_root(command, model)
        if root.exists() and not root.is_dir():
            raise UsageError(f"output '{root}' is a file: give a folder with -o")
        used = root.is_dir() and any(root.iterdir())
        if used and not self.resume and not self.exist_ok:
            raise UsageError(
                f"output folder '{root}' is not empty: give another -o, --resume to go on, or "
                "--exist-ok to overwrite"
            )
        return root

    def note(self) -> Callable[[str], None]:
        """Where progress goes."""
        console = stderr()
        return lambda text: None if self.quiet else console.print(text, markup=False)


class ServeOptions(LessonOptions):
    """What the teacher's end takes besides."""

    host: str = "0.0.0.0"
    """Address to listen at."""
    port: Annotated[int, Field(ge=0, le=65535)] = 50051
    """Port to listen at; 0 takes a free one."""
    train: bool = False
    """The teacher trains on the labels at the same time."""
    students: Positive = 1
    """How many students the lesson has."""
    wait: Seconds = 600.0
    """How long to wait for them: 10min."""


class AttendOptions(LessonOptions):
    """What the student's end takes besides."""

    exchange: str = "logits"
    """logits, features, weights, or inputs (images up)."""
    codec: str = "fp16"
    """How logits travel: fp32, fp16, int8, top-k, soft."""
    loss: Loss = like(DistillStage, "loss")
    temperature: Above0 | None = like(DistillStage, "temperature")
    alpha: Weight | None = like(DistillStage, "alpha")
    teacher_model: str | None = None
    """The teacher's network, for --exchange weights."""
    features: Maps | None = None
    """With --exchange features: how maps are compared; default: attention."""
    feature_weight: Annotated[float, Field(ge=0)] | None = None
    """Weight of the maps beside the logits; default: 1."""
    mutual: bool = False
    """The teacher, which trains, learns from this student too."""
    staleness: Natural = 0
    """With --mutual: steps by which the logits learned from may be old."""
    name: str = "student"
    """How the teacher knows this student."""
    run_id: str | None = flag("--run", None)
    """A name of the lesson; a student that comes back gives it again."""
    keep_every: Positive = 50
    """Steps between kept states."""
    window: Positive = 64
    """Steps under way at once, to hide the round trip."""
    patience: Seconds = 60.0
    """How long to look for a teacher that is away: 60s."""

    def attendance(self, output: Path) -> Attendance:
        """How the student attends."""
        from edgecompress.lesson import Attendance

        return Attendance(
            output,
            self.exchange,
            self.codec,
            self.name,
            self.run_id,
            self.teacher_model,
            self.keep_every,
            self.window,
            self.patience,
            self.resume,
        )

    def learning(self) -> Learning:
        """How the student learns."""
        from edgecompress.lesson import Learning

        return Learning(
            self.loss,
            self.temperature,
            self.alpha,
            self.features,
            self.feature_weight,
            self.mutual,
            self.staleness,
            self.cutting(),
        )


OWN = tuple(LessonOptions.model_fields)
SHARED_BY_SERVE = options_of(ServeOptions, "Lesson", only=OWN)
SHARED_BY_ATTEND = options_of(AttendOptions, "Lesson", only=OWN)
Served = Annotated[
    str, typer.Argument(help="a checkpoint (or run folder), or a name from edgecompress models")
]
Taught = Annotated[str, typer.Argument(help="a name from edgecompress models, or a checkpoint")]
Connect = Annotated[str, typer.Option("--connect", help="HOST:PORT of the teacher")]


@verb(options_of(ServeOptions, "Serving", without=OWN), SHARED_BY_SERVE)
def serve(model: Served, given: Given) -> None:
    """Serve one lesson: send students the logits of this network until they are done.

    Example: edgecompress teacher serve runs/teacher --insecure
    """
    from edgecompress.lesson import Service, serve_lesson

    options = given.settings(ServeOptions)
    tls, note = options.tls(), options.note()
    root = options.folder("teacher", model)
    service = Service(
        root, options.train, options.students, options.wait, options.cutting(), options.resume
    )
    result = serve_lesson(
        options.lesson(),
        model,
        f"{options.host}:{options.port}",
        tls,
        service,
        ready=lambda bound: note(f"listening at {options.host}:{bound}"),
        note=note,
    )
    if options.as_json:
        print_json(result)
    else:
        print_line(f"teacher: {_accuracy(result)}")
    _end(result, root, options.as_json)


@verb(options_of(AttendOptions, "Learning", without=OWN), SHARED_BY_ATTEND)
def run(model: Taught, connect: Connect, given: Given) -> None:
    """Learn from a teacher that is served elsewhere.

    Example: edgecompress student run student3 --connect 10.0.0.1:50051 --insecure
    """
    from edgecompress.lesson import attend_lesson

    options = given.settings(AttendOptions)
    tls, note = options.tls(), options.note()
    _check_address(connect)
    if options.resume and options.output is None:
        raise UsageError("--resume without -o: name the folder of the lesson that was stopped")
    root = options.folder("student", model)
    result = attend_lesson(
        options.lesson(),
        model,
        connect,
        tls,
        options.attendance(root),
        options.learning(),
        on_epoch=lambda row, score: note(
            f"epoch {row.epoch}: validation {score}, {row.seconds:.1f} s"
        ),
        note=note,
    )
    if options.as_json:
        print_json(result)
    else:
        _show_student(result)
    _end(result, root, options.as_json)


teacher_app.command("serve", cls=GroupedCommand)(serve)
student_app.command("run", cls=GroupedCommand)(run)


def _check_address(connect: str) -> None:
    """Raises `UsageError` for other text than HOST:PORT."""
    host, _, port = connect.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(f"--connect '{connect}' is no HOST:PORT: write it like 10.0.0.1:50051")


def _accuracy(result: AttendedLesson | ServedLesson) -> str:
    if result["accuracy"] is None:
        return "accuracy not measured, no data"
    text = shown(result["accuracy"], result["n"])
    return f"accuracy {text} on the test split of {result['data_label']}"


def _show_student(result: AttendedLesson) -> None:
    print_line(f"student: {_accuracy(result)}")
    print_line(
        f"{result['samples']} samples, {result['payload_bytes']} bytes of payload, "
        f"{result['bytes_per_sample']:.2f} per sample"
    )


def _end(result: ServedLesson | AttendedLesson, root: Path, as_json: bool) -> None:
    """Print where the result is, and what pruning left; exit code 3 where it missed its amount."""
    if not as_json:
        if "params_before" in result:
            print_line(f"pruned:  {result['params']} of {result['params_before']} parameters left")
        if "floors_reached" in result:
            print_line(f"missed:  {result['floors_reached']}")
        print_line(f"result:  {root / 'result.json'}")
    if "floors_reached" in result:
        raise typer.Exit(3)
