"""A lesson between two machines, end to end: what `edgecompress teacher serve` and `edgecompress student run` do, and what they write."""

from __future__ import annotations

import hashlib
import secrets
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edgecompress import checkpoint, files
from edgecompress.data import DataSet, load_data
from edgecompress.errors import EdgecompressError, UsageError
from edgecompress.measure import machine
from edgecompress.methods.features import KINDS, map_ends
from edgecompress.models.registry import ModelSource, build, runs_user_code
from edgecompress.online.secure import Tls
from edgecompress.online.session import Plan, Shelf, check_student
from edgecompress.online.student import Student, Tally
from edgecompress.online.teacher import Teacher, serve
from edgecompress.pipeline import Context, Silent, seed_everything
from edgecompress.recipe import Recipe
from edgecompress.rundir import RunDirectory
from edgecompress.settings import GradualStage
from edgecompress.stages.common import count
from edgecompress.stages.gradual import UNMET, Shrinking, shrinking
from edgecompress.train.batches import evaluate
from edgecompress.train.fit import FitResult, Hooks, label_loss
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
        """The seed of the first weights of `who`: two students of one network shall not be the same."""
        return int.from_bytes(hashlib.sha256(f"{self.seed} {who}".encode()).digest()[:4], "little")

    def settings(self, model: nn.Module, data: DataSet) -> FitSettings:
        """How to train."""
        chosen = default_settings(model, data, self.epochs, has_norm(model))
        given = {"batch_size": self.batch_size, "learning_rate": self.learning_rate}
        return replace(chosen, augmentation=data.augmentation, view_seed=self.seed, **{k: v for k, v in given.items() if v is not None})  # type: ignore[arg-type]


def network(name: str, data: DataSet, seed: int) -> tuple[nn.Module, ModelSource]:
    """The network called `name` from scratch, or that of a checkpoint at the path `name` (a file, or the folder of a run)."""
    path = Path(name)
    inner = path / "model.safetensors" if path.is_dir() else path
    if inner.is_file() and inner.suffix == ".safetensors":
        manifest = checkpoint.read_manifest(inner)
        if runs_user_code(manifest.model.name):
            raise UsageError(f"'{inner}' is built by your own code '{manifest.model.name}': export it to a file of ours first")
        if manifest.model.num_classes != len(data.classes):
            raise UsageError(f"'{inner}' knows {manifest.model.num_classes} classes, data '{data.name}' has {len(data.classes)}")
        return checkpoint.load(inner)[0], manifest.model
    source = ModelSource(name, len(data.classes), data.image_shape)
    seed_everything(seed)
    model = build(source)
    if not has_norm(model):
        unit_variance_init(model, data.normalised(data.train.pixels[:128]))
    return model, source


@dataclass(frozen=True)
class Cutting:
    """How a network is pruned while it trains in a lesson: `amount` as in stage gradual (50%, 2Mparams, 4MB), by cuts of `step` each."""

    amount: str
    step: float = 0.1
    schedule: str = "early"

    def plan(self, lesson: Lesson, model: nn.Module, source: ModelSource, data: DataSet, settings: FitSettings, output: Path) -> Shrinking:
        """The cuts. Raises `UsageError` for an amount that cannot be met."""
        asked = GradualStage.model_validate({"stage": "gradual", "amount": self.amount, "step": self.step, "schedule": self.schedule})
        recipe = Recipe(model=source.name, data=lesson.data, seed=lesson.seed, device="cpu", image_size=lesson.image_size, stages=(asked,))
        output.mkdir(parents=True, exist_ok=True)
        context = Context(recipe, data, CPU, RunDirectory(output), output, lesson.seed, Silent(), lesson.threads or machine.cores())
        return shrinking(context, asked, model, label_loss, settings.epochs, "lesson")


def _told_of_cuts(cuts: Shrinking | None, result: FitResult | None, params: int) -> dict[str, Any]:
    """What `result.json` says of a pruning."""
    if cuts is None or result is None:
        return {}
    told = {"params_before": params, "gradual": cuts.report(result)}
    return told if result.eligible else {**told, "floors_reached": UNMET}


def serve_lesson(
    lesson: Lesson, model: str, address: str, tls: Tls | None, *, output: Path, train: bool, students: int, timeout: float | None,
    ready: Callable[[int], None], note: Callable[[str], None], cutting: Cutting | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Serve one lesson, to its end; writes `model.safetensors` and `result.json` into `output`. `ready` is told the port."""
    if cutting is not None and not train:
        raise UsageError(f"--prune {cutting.amount} cuts a teacher that trains: give --train too")
    data = lesson.load()
    made, source = network(model, data, lesson.begins_with("teacher"))
    settings, before = lesson.settings(made, data), count(made)
    cuts = cutting.plan(lesson, made, source, data, settings, output) if cutting is not None else None
    teacher = Teacher(
        made, data, train=settings if train else None, students=students, shelf=output / "kept", cut=cuts.hooks if cuts else None, note=note
    )
    server, port = serve(teacher, address, tls)
    _end_on_sigterm()
    start = time.perf_counter()
    try:
        ready(port)
        teacher.lesson(timeout)
    finally:
        server.stop(2.0).wait()
    loss, accuracy = evaluate(teacher.model, data, data.test, CPU)
    result = {
        "schema": 1, "command": "teacher", "model": source.name, "data": lesson.data, "data_label": data.label, "seed": lesson.seed,
        "trained": train, "students": sorted(teacher.pupils), "accuracy": accuracy, "loss": loss, "steps": teacher.steps,
        "params": count(teacher.model), **_told_of_cuts(cuts, teacher.result, before),
        "payload_bytes": teacher.payload_bytes, "wire_bytes": teacher.wire_bytes, "wall_s": time.perf_counter() - start,
        "hardware": machine.hardware(), "versions": machine.versions(),
    }  # fmt: skip
    checkpoint.save(output / "model.safetensors", teacher.model, source, checkpoint.notes_for(data))
    files.write_json(output / "result.json", result)
    return result


def attend_lesson(
    lesson: Lesson, model: str, target: str, tls: Tls | None, *, output: Path, exchange: str, codec: str, name: str, run: str | None,
    teacher_model: str | None, keep_every: int, window: int, loss: str, temperature: float | None, alpha: float | None, patience: float,
    on_epoch: Callable[[EpochRow], None], note: Callable[[str], None], features: str = "attention", feature_weight: float = 1.0,
    mutual: bool = False, staleness: int = 0, cutting: Cutting | None = None, resume: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Attend one lesson; writes `model.safetensors`, `history.csv` and `result.json` into `output`, and keeps its state below `kept/`.

    With `resume` it goes on from the state there. Raises `UsageError` when that is of another lesson.
    """
    if features not in KINDS:
        raise UsageError(f"--features {features} is not known: allowed are {', '.join(KINDS)}")
    if exchange == "weights" and teacher_model is None:
        raise UsageError("--exchange weights needs --teacher-model: the name of the network whose weights come")
    shelf = Shelf(output / "kept")
    known = shelf.plan() if resume else None
    data = lesson.load()
    made, source = network(model, data, lesson.begins_with(f"student {name}"))
    settings, before = lesson.settings(made, data), count(made)
    by_maps = exchange == "features"
    plan = Plan(
        run or (known["run"] if known else secrets.token_hex(4)), exchange, codec, lesson.seed, settings.epochs, settings.batch_size,
        len(data.train), len(data.classes), lesson.data, data.digest(), asdict(settings.augmentation or data.augmentation),
        settings.view_seed, keep_every, window, features=features if by_maps else "",
        maps=[list(size) for size in map_ends(made, torch.zeros(1, *data.image_shape)).values()] if by_maps else [],
        mutual=mutual, staleness=staleness,
    )  # fmt: skip
    check_student(plan)
    if known is not None and known != plan.as_dict():
        other = ", ".join(sorted(key for key, value in plan.as_dict().items() if known.get(key) != value))
        raise UsageError(f"'{output}' holds a lesson with another {other}: give the same options, or --exist-ok to begin anew")
    if not resume:
        shelf.clear()
    shelf.claim(plan)
    cuts = cutting.plan(lesson, made, source, data, settings, output) if cutting is not None else None
    student = Student(
        made, data, settings, plan, name=name, shelf=output / "kept", loss=loss, temperature=temperature, alpha=alpha,
        feature_weight=feature_weight, cut=cuts.hooks if cuts else Hooks(), on_epoch=on_epoch, note=note,
        mentor=build(ModelSource(teacher_model, len(data.classes), data.image_shape)) if exchange == "weights" and teacher_model else None,
    )  # fmt: skip
    _end_on_sigterm()
    start = time.perf_counter()
    found = student.attend(target, tls, patience)
    loss_value, accuracy = evaluate(found.model, data, data.test, CPU)
    tally = student.tally
    result = {
        "schema": 1, "command": "student", "model": source.name, "data": lesson.data, "data_label": data.label, "seed": lesson.seed,
        "run": plan.run, "name": name, "exchange": exchange, "codec": codec, "accuracy": accuracy, "loss": loss_value,
        "features": plan.features or None, "mutual": mutual, "staleness": staleness if mutual else None, "params": count(found.model),
        **_told_of_cuts(cuts, found, before),
        "validation_accuracy": found.best.validation_accuracy, "epochs": plan.epochs, "batch_size": plan.batch_size,
        **tallied(tally), "wall_s": time.perf_counter() - start, "hardware": machine.hardware(), "versions": machine.versions(),
    }  # fmt: skip
    checkpoint.save(output / "model.safetensors", found.model, source, checkpoint.notes_for(data))
    files.write_csv(output / "history.csv", [row.as_dict() for row in found.history])
    files.write_json(output / "result.json", result)
    return result


def tallied(tally: Tally) -> dict[str, Any]:
    """What a lesson took, as JSON values."""

    def percentiles(values: list[float]) -> dict[str, float]:
        return {f"p{q}": round(float(np.percentile(values, q)), 3) for q in (50, 99)} if values else {"p50": 0.0, "p99": 0.0}

    compute = [step - wait for step, wait in zip(tally.step_ms, tally.wait_ms, strict=True)]
    return {
        "steps": tally.steps, "samples": tally.samples, "breaks": tally.breaks, "payload_bytes": tally.payload_bytes,
        "wire_bytes": tally.wire_bytes, "bytes_per_sample": tally.payload_bytes / max(1, tally.samples),
        "step_ms": percentiles(tally.step_ms), "wait_ms": percentiles(tally.wait_ms), "compute_ms": percentiles(compute),
        "steps_per_s": 1e3 * len(tally.step_ms) / max(1e-9, sum(tally.step_ms)), "timeline": tally.timeline,
    }  # fmt: skip


def _end_on_sigterm() -> None:
    """SIGTERM ends a role like Ctrl-C does: connections are closed, half files are not left."""

    def end(*_: object) -> None:
        raise EdgecompressError("ended by SIGTERM")

    signal.signal(signal.SIGTERM, end)
