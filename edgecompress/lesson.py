"""A lesson between two machines, end to end: what `edgecompress teacher serve` and `edgecompress
student run` do, and what they write.
"""

from __future__ import annotations

import hashlib
import secrets
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edgecompress import checkpoint, files
from edgecompress.data import DataSet, Preprocess, load_data
from edgecompress.errors import UsageError
from edgecompress.measure import machine
from edgecompress.methods.distill import DEFAULTS
from edgecompress.methods.features import KINDS, map_ends
from edgecompress.models.registry import ModelSource, build, runs_user_code
from edgecompress.online.checks import check_options
from edgecompress.online.plan import Plan, label_of, shape_of
from edgecompress.online.progress import Tally
from edgecompress.online.secure import Tls
from edgecompress.online.store import StateStore
from edgecompress.online.student import Student
from edgecompress.online.teacher import Teacher, serve
from edgecompress.recipe import Recipe
from edgecompress.run.context import Context, Silent, seed_everything
from edgecompress.run.directory import RunDirectory
from edgecompress.stages.common import count
from edgecompress.stages.gradual import GradualStage
from edgecompress.stages.gradual.work import AMOUNT_NOT_MET, Shrinking, shrinking
from edgecompress.train.batches import evaluate
from edgecompress.train.fit import FitResult, label_loss
from edgecompress.train.history import EpochRow
from edgecompress.train.init import has_norm, unit_variance_init
from edgecompress.train.settings import FitSettings, default_settings

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Lesson:
    """What both verbs are told alike; None takes the defaults of network and data."""

    data: str = "digits"
    image_size: int | None = None
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    seed: int = 0
    threads: int | None = None

    def load(self) -> DataSet:
        """The data; sets torch's threads too."""
        torch.set_num_threads(self.threads or machine.cores())
        return load_data(self.data, image_size=self.image_size)

    def begins_with(self, who: str) -> int:
        """The seed of the first weights of `who`: two students of one network shall not be the
        same.
        """
        return int.from_bytes(hashlib.sha256(f"{self.seed} {who}".encode()).digest()[:4], "little")

    def settings(self, model: nn.Module, data: DataSet) -> FitSettings:
        """How to train."""
        chosen = default_settings(model, data, self.epochs, has_norm(model))
        if self.batch_size is not None:
            chosen = replace(chosen, batch_size=self.batch_size)
        if self.learning_rate is not None:
            chosen = replace(chosen, learning_rate=self.learning_rate)
        return replace(chosen, augmentation=data.augmentation, view_seed=self.seed)


@dataclass(frozen=True)
class Network:
    """A network, what it is built from, and how it reads pixels."""

    model: nn.Module
    source: ModelSource
    preprocess: Preprocess

    def own(self) -> str:
        """SHA-256 (hex) of its weights: what a kept state depends on."""
        hashed = hashlib.sha256()
        for name, value in self.model.state_dict().items():
            hashed.update(
                f"{name} {tuple(value.shape)} ".encode() + value.contiguous().numpy().tobytes()
            )
        return hashed.hexdigest()


def stored(name: str) -> Path | None:
    """The file of the checkpoint at the path `name` (a file, or the folder of a run); None where
    there is none.
    """
    path = Path(name)
    inner = path / "model.safetensors" if path.is_dir() else path
    return inner if inner.is_file() and inner.suffix == ".safetensors" else None


def network(name: str, data: DataSet | None, seed: int) -> Network:
    """The network called `name` from scratch, or that of a checkpoint, which reads pixels as it was
    trained to.

    Without `data` it must be a checkpoint. Raises `UsageError` for one of other classes, or that
    the data's images do not fit.
    """
    inner = stored(name)
    if inner is None:
        if data is None:
            raise UsageError(f"--data none needs a trained network: '{name}' is no checkpoint")
        source = ModelSource(name, len(data.classes), data.image_shape)
        seed_everything(seed)
        model = build(source)
        if not has_norm(model):
            unit_variance_init(model, data.normalised(data.train.pixels[:128]))
        return Network(model, source, data.preprocess)
    manifest = checkpoint.read_manifest(inner)
    source = manifest.model
    if runs_user_code(source.name):
        raise UsageError(
            f"'{inner}' is built by your own code '{source.name}': export it to a file of "
            "ours first"
        )
    preprocess = checkpoint.preprocess_of(manifest) or (
        data.preprocess if data is not None else None
    )
    if preprocess is None:
        raise UsageError(
            f"'{inner}' does not say how it reads images: give the --data that it was trained on"
        )
    if data is not None:
        if source.num_classes != len(data.classes):
            raise UsageError(
                f"'{inner}' knows {source.num_classes} classes, data '{data.name}' has "
                f"{len(data.classes)}"
            )
        if preprocess.shape(data.native_shape) != source.image_shape:
            raise UsageError(
                f"'{inner}' reads images {source.image_shape}, data '{data.name}' gives it "
                f"{preprocess.shape(data.native_shape)}: give "
                "the --image-size that it was trained with"
            )
    return Network(checkpoint.load(inner)[0], source, preprocess)


@dataclass(frozen=True)
class Cutting:
    """How a network is pruned while it trains in a lesson: `amount` as in stage gradual (50%,
    2Mparams, 4MB), by cuts of `step` each.
    """

    amount: str
    step: float = 0.1
    schedule: str = "early"

    def plan(
        self,
        lesson: Lesson,
        model: nn.Module,
        source: ModelSource,
        data: DataSet,
        settings: FitSettings,
        output: Path,
    ) -> Shrinking:
        """The cuts. Raises `UsageError` for an amount that cannot be met."""
        asked = GradualStage.model_validate(
            {
                "stage": "gradual",
                "amount": self.amount,
                "step": self.step,
                "schedule": self.schedule,
            }
        )
        recipe = Recipe(
            model=source.name,
            data=lesson.data,
            seed=lesson.seed,
            device="cpu",
            image_size=lesson.image_size,
            stages=(asked,),
        )
        output.mkdir(parents=True, exist_ok=True)
        context = Context(
            recipe,
            data,
            CPU,
            RunDirectory(output),
            output,
            lesson.seed,
            Silent(),
            lesson.threads or machine.cores(),
        )
        return shrinking(context, asked, model, label_loss, settings.epochs, "lesson")


def _check_learnable(lesson: Lesson, data: DataSet) -> None:
    """Raises `UsageError` for data or settings that no lesson can use."""
    if data.task.metric != "accuracy":
        raise UsageError(
            f"data '{lesson.data}' is a regression ({data.task.metric}): what a lesson "
            "exchanges is about classes"
        )
    if lesson.learning_rate is not None and not 0 < lesson.learning_rate < float("inf"):
        raise UsageError(f"--learning-rate {lesson.learning_rate}: give a number above 0")
    if lesson.epochs is not None and lesson.epochs < 1:
        raise UsageError(f"--epochs {lesson.epochs}: a lesson has at least 1")


def _told_of_cuts(cuts: Shrinking | None, result: FitResult | None, params: int) -> dict[str, Any]:
    """What `result.json` says of a pruning."""
    if cuts is None or result is None:
        return {}
    told = {"params_before": params, "gradual": cuts.report(result)}
    return told if result.eligible else {**told, "floors_reached": AMOUNT_NOT_MET}


def serve_lesson(
    lesson: Lesson,
    model: str,
    address: str,
    tls: Tls | None,
    *,
    output: Path,
    train: bool,
    students: int,
    timeout: float | None,
    ready: Callable[[int], None],
    note: Callable[[str], None],
    cutting: Cutting | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Serve one lesson, to its end; writes `model.safetensors` and `result.json` into `output`.
    `ready` is told the port.

    With `resume` it goes on from the states in `output`; the result says `resumed`, and its bytes
    are those since. Data `none` are enough for a teacher that stands still and is told all pixels.
    """
    if cutting is not None and not train:
        raise UsageError(f"--prune {cutting.amount} cuts a teacher that trains: give --train too")
    if lesson.data == "none" and train:
        raise UsageError("--train needs data: give --data")
    data = None if lesson.data == "none" else lesson.load()
    if data is not None:
        _check_learnable(lesson, data)
    made = network(model, data, lesson.begins_with("teacher"))
    data = None if data is None else replace(data, preprocess=made.preprocess)
    settings = lesson.settings(made.model, data) if train and data is not None else None
    cuts = (
        cutting.plan(lesson, made.model, made.source, data, settings, output)
        if cutting and data and settings
        else None
    )
    before = count(made.model)
    own = {
        "weights": made.own(),
        "cutting": asdict(cutting) if cutting else None,
        "rate": settings.learning_rate if settings else None,
    }
    teacher = Teacher(
        made.model,
        data,
        preprocess=made.preprocess,
        classes=made.source.num_classes,
        train=settings,
        students=students,
        states=output / "kept",
        own=own,
        resume=resume,
        cut=cuts.hooks if cuts else None,
        note=note,
    )
    server, port = serve(teacher, address, tls)
    _end_on_sigterm()
    start = time.perf_counter()
    try:
        ready(port)
        teacher.teach(timeout)
    finally:
        server.stop(2.0).wait()
    loss, accuracy = (
        evaluate(teacher.model, data, data.test, CPU) if data is not None else (None, None)
    )
    result = {
        "schema": 1,
        "command": "teacher",
        "model": made.source.name,
        "data": lesson.data,
        "data_label": data.label if data else "no data",
        "seed": lesson.seed,
        "trained": train,
        "students": sorted(teacher.sessions),
        "accuracy": accuracy,
        "loss": loss,
        "steps": teacher.steps,
        "params": count(teacher.model),
        **_told_of_cuts(cuts, teacher.result, before),
        "resumed": resume,
        "payload_bytes": teacher.payload_bytes,
        "wire_bytes": teacher.wire_bytes,
        "wall_s": time.perf_counter() - start,
        "hardware": machine.hardware(),
        "versions": machine.versions(),
    }
    if data is not None:
        checkpoint.save(
            output / "model.safetensors", teacher.model, made.source, checkpoint.notes_for(data)
        )
    files.write_json(output / "result.json", result)
    return result


@dataclass(frozen=True)
class Learning:
    """How a student learns from what it is told; None takes the loss's own defaults."""

    loss: str = "kl"
    temperature: float | None = None
    alpha: float | None = None
    features: str | None = None
    feature_weight: float | None = None
    mutual: bool = False
    staleness: int = 0
    cutting: Cutting | None = None

    def check(self, exchange: str) -> None:
        """Raises `UsageError` for an unknown way, or one that has no meaning beside another."""
        if self.loss not in DEFAULTS:
            raise UsageError(
                f"--loss '{self.loss}' is not known: allowed are {', '.join(DEFAULTS)}"
            )
        if self.mutual and (
            self.loss != "kl" or self.temperature is not None or self.alpha is not None
        ):
            raise UsageError(
                "--mutual has a loss of its own (cross-entropy + KL at T = 1): drop --loss, "
                "--temperature and --alpha"
            )
        if exchange != "features" and (
            self.features is not None or self.feature_weight is not None
        ):
            raise UsageError(
                "--features and --feature-weight belong to --exchange features: give that "
                "too, or drop them"
            )
        if self.features is not None and self.features not in KINDS:
            raise UsageError(
                f"--features '{self.features}' is not known: allowed are {', '.join(KINDS)}"
            )


def attend_lesson(
    lesson: Lesson,
    model: str,
    target: str,
    tls: Tls | None,
    *,
    output: Path,
    exchange: str,
    codec: str,
    name: str,
    run: str | None,
    teacher_model: str | None,
    keep_every: int,
    window: int,
    learning: Learning,
    patience: float,
    on_epoch: Callable[[EpochRow], None],
    note: Callable[[str], None],
    resume: bool = False,
) -> dict[str, Any]:
    """Attend one lesson; writes `model.safetensors`, `history.csv` and `result.json` into `output`,
    and keeps its state below `kept/`.

    With `resume` it goes on from the state there. Raises `UsageError` when that is of another
    lesson.
    """
    learning.check(exchange)
    if (exchange == "weights") != (teacher_model is not None):
        raise UsageError(
            "--exchange weights and --teacher-model, the name of the network whose weights "
            "come, go together"
        )
    known = StateStore(output / "kept").label() if resume else None
    data = lesson.load()
    _check_learnable(lesson, data)
    made = network(model, data, lesson.begins_with(f"student {name}"))
    data = replace(data, preprocess=made.preprocess)
    settings, before, by_maps = (
        lesson.settings(made.model, data),
        count(made.model),
        exchange == "features",
    )
    plan = Plan(
        run or (known["plan"]["run"] if known else secrets.token_hex(4)),
        exchange,
        codec,
        lesson.seed,
        settings.epochs,
        settings.batch_size,
        len(data.train),
        len(data.classes),
        lesson.data,
        data.digest(),
        asdict(settings.augmentation or data.augmentation),
        settings.view_seed,
        **shape_of(data),
        keep_every=keep_every,
        window=window,
        features=(learning.features or "attention") if by_maps else "",
        maps=[
            list(size) for size in map_ends(made.model, torch.zeros(1, *data.image_shape)).values()
        ]
        if by_maps
        else [],
        mutual=learning.mutual,
        staleness=learning.staleness,
    )
    check_options(plan)
    own = {
        "weights": made.own(),
        "rate": settings.learning_rate,
        "teacher_model": teacher_model,
        **asdict(learning),
    }
    label = label_of(plan, own)
    if known is not None and known != label:
        raise UsageError(
            f"'{output}' holds a lesson with {_other(known, label)}: give the same options, "
            "or --exist-ok to begin anew"
        )
    mentor = (
        build(ModelSource(teacher_model, len(data.classes), data.image_shape))
        if teacher_model
        else None
    )
    cuts = (
        learning.cutting.plan(lesson, made.model, made.source, data, settings, output)
        if learning.cutting is not None
        else None
    )
    store = plan.store(output / "kept")
    if not resume:
        store.clear()
    store.claim(label)
    student = Student(
        made.model,
        data,
        settings,
        plan,
        name=name,
        states=output / "kept",
        loss=learning.loss,
        temperature=learning.temperature,
        alpha=learning.alpha,
        feature_weight=1.0 if learning.feature_weight is None else learning.feature_weight,
        cut=cuts.hooks if cuts else None,
        on_epoch=on_epoch,
        note=note,
        mentor=mentor,
    )
    _end_on_sigterm()
    start, results = time.perf_counter(), list[dict[str, Any]]()

    def finished(found: FitResult) -> None:
        loss_value, accuracy = evaluate(found.model, data, data.test, CPU)
        result = {
            "schema": 1,
            "command": "student",
            "model": made.source.name,
            "data": lesson.data,
            "data_label": data.label,
            "seed": lesson.seed,
            "run": plan.run,
            "name": name,
            "exchange": exchange,
            "codec": None if exchange == "weights" else codec,
            "accuracy": accuracy,
            "loss": loss_value,
            "features": plan.features or None,
            "mutual": plan.mutual,
            "staleness": plan.staleness if plan.mutual else None,
            "params": count(found.model),
            **_told_of_cuts(cuts, found, before),
            "validation_accuracy": found.best.validation_accuracy,
            "epochs": plan.epochs,
            "batch_size": plan.batch_size,
            **tallied(student.tally),
            "wall_s": time.perf_counter() - start,
            "hardware": machine.hardware(),
            "versions": machine.versions(),
        }
        checkpoint.save(
            output / "model.safetensors", found.model, made.source, checkpoint.notes_for(data)
        )
        files.write_csv(output / "history.csv", [row.as_dict() for row in found.history])
        files.write_json(output / "result.json", result)
        results.append(result)

    student.attend(target, tls, patience, finished)
    return results[-1]


def _other(known: Mapping[str, Any], label: Mapping[str, Any]) -> str:
    """Which values of two labels differ."""
    names = sorted(
        key
        for part in ("plan", "own")
        for key, value in label[part].items()
        if known[part].get(key) != value
    )
    return f"another {', '.join(names)}"


def tallied(tally: Tally) -> dict[str, Any]:
    """What a lesson took, as JSON values."""

    def percentiles(values: list[float]) -> dict[str, float]:
        return {f"p{q}": round(float(np.percentile(values, q)), 3) for q in (50, 99)}

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


def _end_on_sigterm() -> None:
    """SIGTERM ends a role like Ctrl-C does: connections are closed, half files are not left."""

    def end(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)
