"""Lessons on loopback, and the same trainings in one process to compare them with."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from edgecompress import lesson as lessons
from edgecompress.data import DataSet
from edgecompress.methods.distill import learning_from
from edgecompress.methods.features import map_ends
from edgecompress.online.plan import Plan, shape_of
from edgecompress.online.secure import Tls
from edgecompress.online.student import Student
from edgecompress.online.teacher import Teacher, serve
from edgecompress.train.batches import Batch
from edgecompress.train.fit import FitResult, Hooks, Learner, fit, fit_together
from edgecompress.train.settings import FitSettings

CPU = torch.device("cpu")
SETTINGS = FitSettings(2, batch_size=32, learning_rate=1e-3, precision="fp32")
SEED = 3
SAMPLES = 400
"""Samples of a lesson under `SETTINGS`: two epochs of the 200 images of the fixture `data`."""
STEPS = 14
TEACHER_SEED, STUDENT_SEED = 1, 2


def network(name: str, data: DataSet, seed: int) -> nn.Module:
    return lessons.network(name, data, seed).model


def teacher_network(data: DataSet, name: str = "lenet5") -> nn.Module:
    return network(name, data, TEACHER_SEED)


def student_network(data: DataSet, name: str = "mlp", seed: int = STUDENT_SEED) -> nn.Module:
    return network(name, data, seed)


def plan_for(data: DataSet, **changes: object) -> Plan:
    plan = Plan(
        run="r",
        exchange="logits",
        codec="fp32",
        seed=SEED,
        epochs=SETTINGS.epochs,
        batch_size=SETTINGS.batch_size,
        samples=len(data.train),
        classes=10,
        data="digits",
        data_digest=data.digest(),
        augmentation=asdict(data.augmentation),
        view_seed=0,
        **shape_of(data),
        keep_every=4,
        window=4,
    )
    return replace(plan, **changes)  # type: ignore[arg-type]


def feature_plan(data: DataSet, kind: str) -> Plan:
    """A plan of exchange features for a student lenet5."""
    ends = map_ends(student_network(data, "lenet5"), torch.zeros(1, *data.image_shape))
    sizes = [list(size) for size in ends.values()]
    return plan_for(data, exchange="features", features=kind, maps=sizes)


def new_student(
    data: DataSet,
    plan: Plan | None = None,
    *,
    model: nn.Module | None = None,
    seed: int = STUDENT_SEED,
    name: str = "student",
    states: Path | None = None,
    mentor: nn.Module | None = None,
    cut: Hooks | None = None,
    feature_weight: float = 1.0,
) -> Student:
    return Student(
        model or student_network(data, seed=seed),
        data,
        SETTINGS,
        plan or plan_for(data),
        name=name,
        states=states,
        mentor=mentor,
        cut=cut,
        feature_weight=feature_weight,
    )


def pruning_hooks(
    model: nn.Module,
    data: DataSet,
    cutting: lessons.Cutting | None = None,
    settings: FitSettings = SETTINGS,
) -> Hooks:
    """The hooks of a training in which the lenet5 `model` is pruned."""
    chosen = cutting or lessons.Cutting("40%", 0.2)
    return chosen.plan(model, data, settings, seed=0).hooks


class ServedLesson:
    """A teacher that serves on loopback, its lesson in a thread."""

    def __init__(
        self,
        data: DataSet,
        *,
        model: nn.Module | None = None,
        train: FitSettings | None = None,
        tls: Tls | None = None,
        cut: Hooks | None = None,
        students: int = 1,
        states: Path | None = None,
        resume: bool = False,
    ) -> None:
        self.notes = list[str]()
        self.teacher = Teacher(
            model or teacher_network(data),
            data,
            train=train,
            cut=cut,
            students=students,
            states=states,
            resume=resume,
            note=self.notes.append,
        )
        self.server, self.port = serve(self.teacher, "127.0.0.1:0", tls)
        self.error: Exception | None = None
        self.thread = threading.Thread(target=self._teach, daemon=True)
        self.thread.start()

    def _teach(self) -> None:
        try:
            self.teacher.teach(30)
        except Exception as error:  # whatever it is, the test shall see it
            self.error = error

    @property
    def address(self) -> str:
        return f"localhost:{self.port}"

    def stop(self) -> None:
        self.server.stop(None).wait()

    def assert_ended_well(self, seconds: float = 20) -> None:
        self.thread.join(seconds)
        assert self.error is None


Serve = Callable[..., ServedLesson]
"""The fixture `serve_lesson`: the arguments of `ServedLesson` after the data."""


def attend(
    served: ServedLesson, student: Student, patience: float = 20, tls: Tls | None = None
) -> FitResult:
    return student.attend(served.address, tls, patience)


def attend_to_the_end(served: ServedLesson, student: Student, *, breaks: int = 0) -> FitResult:
    """The result of the student; all samples count once, and the teacher ends well."""
    result = attend(served, student)
    served.assert_ended_well()
    assert student.tally.breaks == breaks
    assert student.tally.samples == SAMPLES
    return result


def attend_together(served: ServedLesson, students: Mapping[str, Student]) -> dict[str, FitResult]:
    """The results of students that learn at the same time."""
    results = dict[str, FitResult]()

    def run(name: str) -> None:
        results[name] = attend(served, students[name])

    threads = [threading.Thread(target=run, args=(name,)) for name in students]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    served.assert_ended_well()
    assert sorted(results) == sorted(students)
    return results


def disconnect(student: Student) -> None:
    """Close the student's channel, and lose the answers that it has not used yet."""
    endpoint = student._endpoint
    assert endpoint is not None
    getattr(endpoint, "_answers", {}).clear()
    endpoint.connection.channel.close()


def before_step(student: Student, step: int, action: Callable[[], object]) -> None:
    """Call `action` before the student's training comes to `step`, the first time it does."""
    progress = student.progress
    advance = progress.advance
    done = [False]

    def watched(batch: Batch) -> None:
        if progress.step + 1 == step and not done[0]:
            done[0] = True
            action()
        advance(batch)

    progress.advance = watched  # type: ignore[method-assign]


def break_connection(student: Student, step: int) -> None:
    """The student loses its connection before `step`, once."""
    before_step(student, step, lambda: disconnect(student))


class Frozen:
    """A source: a frozen network in this process, which runs on every batch."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model.eval()

    def logits(self, batch: Batch) -> Tensor:
        with torch.no_grad():
            return self.model(batch.images).float()  # type: ignore[no-any-return]


def train_in_one_process(data: DataSet) -> FitResult:
    """The reference: the same student and the same frozen teacher, without a network between."""
    loss = learning_from(Frozen(teacher_network(data)))
    return fit(student_network(data), data, loss, SETTINGS, seed=SEED, device=CPU)


def train_together(data: DataSet, **learners: Learner) -> dict[str, FitResult]:
    """The reference of a teacher that trains: all networks in one process."""
    return fit_together(learners, data, seed=SEED, device=CPU)


def assert_same(one: nn.Module, other: nn.Module) -> None:
    """The two networks have the same tensors."""
    for (name, a), (_, b) in zip(one.state_dict().items(), other.state_dict().items(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4, msg=name)


def wait_until(condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.05)
