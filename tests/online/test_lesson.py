"""A lesson over a real connection on loopback: the same network as in one process, through breaks
and kills.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import grpc
import numpy as np
import pytest
import torch

from edgecompress import checkpoint
from edgecompress import lesson as lessons
from edgecompress.data import load_data
from edgecompress.errors import EdgecompressError, UsageError
from edgecompress.methods.distill import learning_from, mutual, peer
from edgecompress.methods.features import FeatureLoss, default_pairs, map_ends
from edgecompress.online import wire
from edgecompress.online.mutual import Mutual
from edgecompress.online.plan import ConnectionLostError, Plan, label_of, shape_of
from edgecompress.online.secure import Tls, make_certificates
from edgecompress.online.store import StateStore, newest_common
from edgecompress.online.student import Connection, Student
from edgecompress.online.teacher import Teacher, serve
from edgecompress.train.batches import Batch
from edgecompress.train.fit import FitResult, Hooks, Learner, Loss, fit, fit_together, label_loss
from edgecompress.train.settings import FitSettings
from tests.cli.test_cli import one_line, run

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data() -> lessons.DataSet:
    whole = load_data("digits")
    return replace(
        whole,
        train=whole.train.rows(torch.arange(200)),
        validation=whole.validation.rows(torch.arange(60)),
    )


SETTINGS = FitSettings(2, batch_size=32, learning_rate=1e-3, precision="fp32")


def plan_for(data: lessons.DataSet, **more: object) -> Plan:
    values = Plan(
        "r",
        "logits",
        "fp32",
        3,
        2,
        32,
        len(data.train),
        10,
        "digits",
        data.digest(),
        asdict(data.augmentation),
        0,
        **shape_of(data),
        keep_every=4,
        window=4,
    )
    return replace(values, **more)  # type: ignore[arg-type]


class Served:
    """A teacher that serves on loopback, its lesson in a thread."""

    def __init__(
        self,
        data: lessons.DataSet,
        *,
        train: FitSettings | None = None,
        tls: Tls | None = None,
        model: str = "lenet5",
        cut: Hooks | None = None,
        students: int = 1,
    ) -> None:
        self.teacher = Teacher(
            lessons.network(model, data, 1).model, data, train=train, cut=cut, students=students
        )
        self.server, self.port = serve(self.teacher, "127.0.0.1:0", tls)
        self.error: Exception | None = None
        self.thread = threading.Thread(target=self._teach, daemon=True)
        self.thread.start()

    def _teach(self) -> None:
        try:
            self.teacher.lesson(30)
        except Exception as error:  # whatever it is, the test shall see it
            self.error = error

    def stop(self) -> None:
        self.server.stop(None).wait()


@pytest.fixture
def serving() -> Iterator[list[Served]]:
    running: list[Served] = []
    yield running
    for served in running:
        served.stop()


def learned(
    data: lessons.DataSet, port: int, plan: Plan, states: Path | None = None, tls: Tls | None = None
) -> tuple[Student, FitResult]:
    student = Student(lessons.network("mlp", data, 2).model, data, SETTINGS, plan, states=states)
    return student, student.attend(f"localhost:{port}", tls, 20)


def cable_pulled(student: Student, at: int) -> None:
    """Before step `at`, the first time that it comes, the connection is gone."""
    original, seen = student._advance, [False]

    def advance(batch: Batch) -> None:
        if student._step + 1 == at and not seen[0] and student._connection is not None:
            seen[0] = True
            student._connection._given.clear()
            student._connection.channel.close()
        original(batch)

    student._advance = advance  # type: ignore[method-assign]


def taught(served: Served, student: Student, broken_before: int | None) -> FitResult:
    """The student learns to the end, through one break where a step is named."""
    if broken_before is not None:
        cable_pulled(student, broken_before)
    result = student.attend(f"localhost:{served.port}", None, 20)
    served.thread.join(20)
    assert served.error is None
    assert student.tally.breaks == int(broken_before is not None)
    assert student.tally.samples == 400
    return result


def taught_together(served: Served, students: dict[str, Student]) -> dict[str, FitResult]:
    """All students learn at once."""
    results = dict[str, FitResult]()

    def attend(name: str) -> None:
        results[name] = students[name].attend(f"localhost:{served.port}", None, 20)

    threads = [threading.Thread(target=attend, args=(name,)) for name in students]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    served.thread.join(20)
    assert served.error is None
    return results


def in_one_process(data: lessons.DataSet) -> FitResult:
    """The reference: the same student, the same fixed teacher, no network."""
    teacher = lessons.network("lenet5", data, 1).model.eval()
    student = lessons.network("mlp", data, 2).model

    def targets(batch: object) -> torch.Tensor:
        with torch.no_grad():
            return teacher(batch.images).float()  # type: ignore[attr-defined, no-any-return]

    return fit(student, data, learning_from(targets), SETTINGS, seed=3, device=CPU)


def same(one: torch.nn.Module, other: torch.nn.Module) -> None:
    for (name, a), (_, b) in zip(one.state_dict().items(), other.state_dict().items(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("exchange", ["logits", "inputs"])
def test_the_student_is_that_of_one_process(
    exchange: str, data: lessons.DataSet, serving: list[Served]
) -> None:
    served = Served(data)
    serving.append(served)
    student, result = learned(data, served.port, plan_for(data, exchange=exchange))
    same(result.model, in_one_process(data).model)
    served.thread.join(10)
    assert served.error is None
    assert student.tally.steps == served.teacher.steps == 14
    assert student.tally.samples == 400
    pixels = 400 * 3 * 32 * 32 if exchange == "inputs" else 0
    assert student.tally.payload_bytes == 400 * 10 * 4 + pixels
    if exchange == "inputs":
        assert student.tally.wire_bytes <= 1.15 * student.tally.payload_bytes


def test_a_teacher_that_trains_is_that_of_one_process(
    data: lessons.DataSet, serving: list[Served]
) -> None:
    served = Served(data, train=SETTINGS)
    serving.append(served)
    _, result = learned(data, served.port, plan_for(data))
    served.thread.join(20)
    assert served.error is None
    learners = {
        "teacher": Learner(lessons.network("lenet5", data, 1).model, label_loss, SETTINGS),
        "student": Learner(
            lessons.network("mlp", data, 2).model, learning_from(peer("teacher")), SETTINGS
        ),
    }
    reference = fit_together(learners, data, seed=3, device=CPU)
    same(served.teacher.model, reference["teacher"].model)
    same(result.model, reference["student"].model)


def test_the_teachers_own_weights_may_travel(data: lessons.DataSet, serving: list[Served]) -> None:
    served = Served(data)
    serving.append(served)
    mentor = lessons.network("lenet5", data, 99).model
    student = Student(
        lessons.network("mlp", data, 2).model,
        data,
        SETTINGS,
        plan_for(data, exchange="weights"),
        mentor=mentor,
    )
    result = student.attend(f"localhost:{served.port}", None, 20)
    same(result.model, in_one_process(data).model)
    assert student.tally.payload_bytes > 2 * 4 * 62_000


def test_a_training_goes_on_from_any_kept_step(data: lessons.DataSet) -> None:
    """What `fit` keeps is all that decides the rest: order, weights, moments, random numbers, the
    best epoch.
    """
    kept = []
    model = lessons.network("lenet5", data, 1).model
    whole = fit(
        model,
        data,
        label_loss,
        replace(SETTINGS, dropout=0.3),
        seed=5,
        device=CPU,
        hooks=Hooks(keep=kept.append, keep_every=1),
    )
    assert [state["step"] for state in kept] == list(range(1, 15))
    for state in kept:
        again = lessons.network("lenet5", data, 8).model
        result = fit(
            again,
            data,
            label_loss,
            replace(SETTINGS, dropout=0.3),
            seed=5,
            device=CPU,
            hooks=Hooks(begin=state),
        )
        same(result.model, whole.model)
        assert [row.train_loss for row in result.history] == pytest.approx(
            [row.train_loss for row in whole.history]
        )
        assert [row.learning_rate for row in result.history] == [
            row.learning_rate for row in whole.history
        ]


@pytest.mark.parametrize("kind", ["hint", "attention"])
def test_features_travel_too(kind: str, data: lessons.DataSet, serving: list[Served]) -> None:
    """The same student as that of one process whose teacher runs beside it, through a break."""
    served = Served(data)
    serving.append(served)
    mine, teacher = (
        lessons.network("lenet5", data, 2).model,
        lessons.network("lenet5", data, 1).model.eval(),
    )
    example = torch.zeros(1, *data.image_shape)
    maps = [list(size) for size in map_ends(mine, example).values()]
    student = Student(
        mine,
        data,
        SETTINGS,
        plan_for(data, exchange="features", features=kind, maps=maps),
        feature_weight=0.5,
    )
    cable_pulled(student, 7)
    result = student.attend(f"localhost:{served.port}", None, 20)
    assert student.tally.breaks == 1
    other = lessons.network("lenet5", data, 2).model

    def targets(batch: Batch) -> torch.Tensor:
        with torch.no_grad():
            return teacher(batch.images).float()  # type: ignore[no-any-return]

    torch.manual_seed(3)
    pairs = default_pairs(other, teacher, example, example)
    loss = FeatureLoss.of_pairs(
        kind, pairs, other, teacher, data.preprocess, learning_from(targets), 0.5
    )
    same(
        result.model,
        fit(other, data, loss, SETTINGS, seed=3, device=CPU, hooks=Hooks(companion=loss)).model,
    )
    assert student.tally.samples == 400


@pytest.mark.parametrize("staleness", [0, 3])
@pytest.mark.parametrize("broken", [False, True])
def test_mutual_learning_is_that_of_one_process(
    staleness: int, broken: bool, data: lessons.DataSet, serving: list[Served]
) -> None:
    """With staleness 0 that of deep mutual learning, with W that of one process in which both learn
    from logits W steps old.
    """
    served = Served(data, train=SETTINGS)
    serving.append(served)
    plan = plan_for(data, mutual=True, staleness=staleness)
    student = Student(lessons.network("mlp", data, 2).model, data, SETTINGS, plan)
    result = taught(served, student, broken_before=10 if broken else None)
    models = {
        "teacher": lessons.network("lenet5", data, 1).model,
        "student": lessons.network("mlp", data, 2).model,
    }
    losses: dict[str, tuple[Loss, Hooks]] = {
        "teacher": (mutual("student"), Hooks()),
        "student": (mutual("teacher"), Hooks()),
    }
    if staleness:
        box: dict[tuple[str, int], torch.Tensor] = {}
        for name, other in (("teacher", "student"), ("student", "teacher")):
            end = Mutual(
                plan,
                data,
                lambda step, logits, name=name: box.update({(name, step): logits}),  # type: ignore[misc]
                lambda step, other=other: [box[other, step]],
            )  # type: ignore[misc]
            losses[name] = (end, Hooks(companion=end))
    learners = {
        name: Learner(model, losses[name][0], SETTINGS, losses[name][1])
        for name, model in models.items()
    }
    reference = fit_together(learners, data, seed=3, device=CPU)
    same(served.teacher.model, reference["teacher"].model)
    same(result.model, reference["student"].model)


def test_one_teacher_learns_from_two_students(data: lessons.DataSet, serving: list[Served]) -> None:
    served = Served(data, train=SETTINGS, students=2)
    serving.append(served)
    plan = plan_for(data, mutual=True)
    students = {
        name: Student(lessons.network("mlp", data, 2).model, data, SETTINGS, plan, name=name)
        for name in ("one", "two")
    }
    results = taught_together(served, students)
    same(results["one"].model, results["two"].model)
    learners = {
        "teacher": Learner(lessons.network("lenet5", data, 1).model, mutual("student"), SETTINGS),
        "student": Learner(lessons.network("mlp", data, 2).model, mutual("teacher"), SETTINGS),
    }
    same(
        served.teacher.model, fit_together(learners, data, seed=3, device=CPU)["teacher"].model
    )  # two equal students say what one does


@pytest.mark.parametrize("both_ways", [False, True])
def test_one_of_two_students_breaks_off(
    both_ways: bool, data: lessons.DataSet, serving: list[Served]
) -> None:
    """The other goes on from where it was, or, where each learns from the other through the
    teacher, back with it; all end as without.
    """
    plan, ends = plan_for(data, mutual=both_ways, keep_every=3), list[list[torch.nn.Module]]()
    for broken in (False, True):
        served = Served(data, train=SETTINGS, students=2)
        serving.append(served)
        students = {
            name: Student(lessons.network("mlp", data, seed).model, data, SETTINGS, plan, name=name)
            for name, seed in (("one", 2), ("two", 5))
        }
        if broken:
            cable_pulled(students["two"], 9)
        results = taught_together(served, students)
        assert sorted(results) == ["one", "two"]
        assert students["two"].tally.breaks == int(broken)
        assert students["one"].tally.breaks == int(broken and both_ways)
        assert [student.tally.samples for student in students.values()] == [400, 400]
        ends.append([served.teacher.model, results["one"].model, results["two"].model])
    for whole, mended in zip(*ends, strict=True):
        same(mended, whole)


def cutting(model: torch.nn.Module, data: lessons.DataSet, folder: Path) -> Hooks:
    source = lessons.ModelSource("lenet5", 10, data.image_shape)
    return (
        lessons.Cutting("40%", 0.2)
        .plan(lessons.Lesson(), model, source, data, SETTINGS, folder)
        .hooks
    )


@pytest.mark.parametrize("broken", [False, True])
def test_both_are_pruned_while_they_train(
    broken: bool, data: lessons.DataSet, serving: list[Served], tmp_path: Path
) -> None:
    """The same two smaller networks as in one process, through a break after the first cut."""
    teaching, learning = (
        lessons.network("lenet5", data, 1).model,
        lessons.network("lenet5", data, 2).model,
    )
    served = Served(data, train=SETTINGS, cut=cutting(teaching, data, tmp_path / "t"))
    serving.append(served)
    student = Student(
        learning,
        data,
        SETTINGS,
        plan_for(data),
        states=tmp_path / "kept",
        cut=cutting(learning, data, tmp_path / "s"),
    )
    result = taught(served, student, broken_before=10 if broken else None)
    before = lessons.count(lessons.network("lenet5", data, 2).model)
    assert lessons.count(result.model) <= 0.6 * before
    assert lessons.count(served.teacher.model) <= 0.6 * before
    learners = {}
    for name, seed, loss in (
        ("teacher", 1, label_loss),
        ("student", 2, learning_from(peer("teacher"))),
    ):
        model = lessons.network("lenet5", data, seed).model
        learners[name] = Learner(model, loss, SETTINGS, cutting(model, data, tmp_path / name))
    reference = fit_together(learners, data, seed=3, device=CPU)
    same(served.teacher.model, reference["teacher"].model)
    same(result.model, reference["student"].model)


@pytest.mark.parametrize("both_ways", [False, True])
def test_a_training_that_fails_is_told_to_the_student(
    both_ways: bool, data: lessons.DataSet, serving: list[Served]
) -> None:
    """It does not wait for answers that cannot come; the reason stands in its own error."""

    def fails(model: torch.nn.Module, epoch: int) -> None:
        raise OSError("no space left on device")

    served = Served(data, train=SETTINGS, cut=Hooks(cut=fails))
    serving.append(served)
    plan = plan_for(data, mutual=both_ways)
    student = Student(lessons.network("mlp", data, 2).model, data, SETTINGS, plan)
    began = time.monotonic()
    with pytest.raises(EdgecompressError, match="the teacher gave up: no space left on device"):
        student.attend(f"localhost:{served.port}", None, 3)
    assert time.monotonic() - began < 30
    served.thread.join(20)
    assert isinstance(served.error, OSError)


@pytest.mark.parametrize("broken", [False, True])
def test_the_weights_of_a_teacher_that_trains(
    broken: bool, data: lessons.DataSet, serving: list[Served]
) -> None:
    """Each epoch of the student learns from the teacher as it was before that epoch of its own
    training.
    """
    served = Served(data, train=SETTINGS)
    serving.append(served)
    plan = plan_for(data, exchange="weights")
    student = Student(
        lessons.network("mlp", data, 2).model,
        data,
        SETTINGS,
        plan,
        mentor=lessons.network("lenet5", data, 99).model,
    )
    result = taught(served, student, broken_before=8 if broken else None)
    teacher, stages = lessons.network("lenet5", data, 1).model, list[dict[str, torch.Tensor]]()
    stages.append({name: value.clone() for name, value in teacher.state_dict().items()})
    after = Hooks(
        on_epoch=lambda _: stages.append(
            {name: value.clone() for name, value in teacher.state_dict().items()}
        )
    )
    same(
        served.teacher.model,
        fit(teacher, data, label_loss, SETTINGS, seed=3, device=CPU, hooks=after).model,
    )
    mentor, seen = lessons.network("lenet5", data, 1).model.eval(), [0]

    def targets(batch: Batch) -> torch.Tensor:
        if seen[0] % plan.steps_an_epoch == 0:
            mentor.load_state_dict(stages[seen[0] // plan.steps_an_epoch])
        seen[0] += 1
        with torch.no_grad():
            return mentor(batch.images).float()  # type: ignore[no-any-return]

    same(
        result.model,
        fit(
            lessons.network("mlp", data, 2).model,
            data,
            learning_from(targets),
            SETTINGS,
            seed=3,
            device=CPU,
        ).model,
    )


def test_a_break_after_the_teachers_last_step(data: lessons.DataSet, serving: list[Served]) -> None:
    """The teacher has trained to its end and its last answers were under way: it goes back too."""
    served = Served(data, train=SETTINGS)
    serving.append(served)
    student = Student(lessons.network("mlp", data, 2).model, data, SETTINGS, plan_for(data))
    original, seen = student._advance, [False]

    def advance(batch: Batch) -> None:
        if student._step + 1 == 14 and not seen[0] and student._connection is not None:
            deadline = time.monotonic() + 20
            while served.teacher.result is None and time.monotonic() < deadline:
                time.sleep(0.05)
            seen[0] = served.teacher.result is not None
            student._connection._given.clear()
            student._connection.channel.close()
        original(batch)

    student._advance = advance  # type: ignore[method-assign]
    result = student.attend(f"localhost:{served.port}", None, 20)
    assert seen[0]
    served.thread.join(20)
    assert served.error is None
    whole = Served(data, train=SETTINGS)
    serving.append(whole)
    same(result.model, learned(data, whole.port, plan_for(data))[1].model)


def test_a_training_with_cuts_and_adapters_goes_on_from_any_kept_step(
    data: lessons.DataSet, tmp_path: Path
) -> None:
    teacher, example, kept = (
        lessons.network("lenet5", data, 1).model.eval(),
        torch.zeros(1, *data.image_shape),
        list[dict[str, object]](),
    )
    settings = replace(SETTINGS, epochs=3)

    def trained(seed: int, keep: object = None, begin: object = None) -> FitResult:
        model = lessons.network("lenet5", data, seed).model
        torch.manual_seed(0)
        loss = FeatureLoss.of_pairs(
            "hint",
            default_pairs(model, teacher, example, example),
            model,
            teacher,
            data.preprocess,
            label_loss,
        )
        source = lessons.ModelSource("lenet5", 10, data.image_shape)
        cuts = (
            lessons.Cutting("50%", 0.3, "middle")
            .plan(lessons.Lesson(), model, source, data, settings, tmp_path)
            .hooks
        )
        hooks = replace(cuts, companion=loss, keep=keep, keep_every=3, begin=begin)  # type: ignore[arg-type]
        return fit(model, data, loss, settings, seed=5, device=CPU, hooks=hooks)

    whole = trained(1, keep=kept.append)
    assert len({state["cuts"].__len__() for state in kept}) > 1, "cuts fell between kept steps"  # type: ignore[attr-defined]
    for state in kept:
        again = trained(1, begin=state)
        same(again.model, whole.model)
        assert [row.params for row in again.history] == [row.params for row in whole.history]


@pytest.mark.parametrize("codec", ["fp32", "soft"])
@pytest.mark.parametrize("training", [False, True])
def test_after_a_break_both_go_back_and_every_sample_counts_once(
    codec: str, training: bool, data: lessons.DataSet, serving: list[Served], tmp_path: Path
) -> None:
    """The connection is cut in the middle: the result is that of a lesson without a break."""
    results, payloads = [], []
    for broken in (False, True):
        served = Served(data, train=SETTINGS if training else None)
        serving.append(served)
        plan = plan_for(data, codec=codec, run=f"run {broken}")
        student = Student(
            lessons.network("mlp", data, 2).model,
            data,
            SETTINGS,
            plan,
            states=tmp_path / str(broken),
        )
        if broken:
            cable_pulled(student, 7)
        results.append(student.attend(f"localhost:{served.port}", None, 20))
        payloads.append(student.tally.payload_bytes)
        assert student.tally.samples == 400
        assert student.tally.steps == 14
        assert student.tally.breaks == int(broken)
        served.thread.join(20)
        assert served.error is None
    same(results[0].model, results[1].model)
    assert payloads[0] == payloads[1], "every step's bytes count once"


def test_patience_counts_from_the_break_not_from_the_beginning(
    data: lessons.DataSet, serving: list[Served]
) -> None:
    """A lesson that went well for longer than the student is patient survives a break too."""
    served = Served(data)
    serving.append(served)
    student = Student(lessons.network("mlp", data, 2).model, data, SETTINGS, plan_for(data))
    original, seen = student._targets, [0]

    def targets(batch: object) -> torch.Tensor:
        seen[0] += 1
        if seen[0] == 6 and student._connection is not None:
            time.sleep(1.5)
            student._connection.channel.close()
        return original(batch)  # type: ignore[arg-type]

    student._targets = targets  # type: ignore[method-assign, assignment]
    student.attend(f"localhost:{served.port}", None, 1.0)
    assert student.tally.breaks == 1
    assert student.tally.samples == 400


def test_tls_is_asked_of_both_ends(
    data: lessons.DataSet, serving: list[Served], tmp_path: Path
) -> None:
    ends = make_certificates(
        tmp_path / "tls", {"teacher": ["127.0.0.1", "localhost"], "student": ["127.0.0.1"]}
    )
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "tls").glob("*.key"))
    served = Served(data, tls=ends["teacher"])
    serving.append(served)
    with pytest.raises(EdgecompressError, match="stayed away"):
        Student(lessons.network("mlp", data, 2).model, data, SETTINGS, plan_for(data)).attend(
            f"localhost:{served.port}", None, 1.0
        )
    foreign = make_certificates(tmp_path / "other", {"student": ["127.0.0.1"]})["student"]
    with pytest.raises(EdgecompressError, match="stayed away"):
        Student(lessons.network("mlp", data, 2).model, data, SETTINGS, plan_for(data)).attend(
            f"localhost:{served.port}", foreign, 1.0
        )
    _, result = learned(data, served.port, plan_for(data), tls=ends["student"])
    same(result.model, in_one_process(data).model)


def test_other_data_or_another_seed_are_refused(
    data: lessons.DataSet, serving: list[Served]
) -> None:
    served = Served(data)
    serving.append(served)
    with pytest.raises(UsageError, match="are not the teacher's"):
        learned(data, served.port, plan_for(data, data_digest="0" * 64))
    with pytest.raises(UsageError, match="classes"):
        learned(data, served.port, plan_for(data, classes=7))
    with pytest.raises(
        UsageError, match="plan: batch_size: Input should be greater than or equal to 1"
    ):
        learned(data, served.port, plan_for(data, batch_size=0, exchange="inputs"))
    with pytest.raises(UsageError, match="needs a teacher that trains"):
        learned(data, served.port, plan_for(data, mutual=True))
    training = Served(data, train=SETTINGS)
    serving.append(training)
    with pytest.raises(
        UsageError,
        match="the student trains for 3 epochs, batches of 32, seed 0, the teacher for 2, 32, 0",
    ):
        learned(data, training.port, plan_for(data, epochs=3))
    with pytest.raises(UsageError, match="stands still"):
        learned(data, training.port, plan_for(data, exchange="inputs"))
    _, result = learned(
        data, served.port, plan_for(data)
    )  # whoever was refused has no place in the lesson
    same(result.model, in_one_process(data).model)


def test_kept_steps(tmp_path: Path) -> None:
    store = StateStore(tmp_path / "kept")
    for step in (10, 20, 30, 40, 50):
        store.put(step, {"step": step, "x": torch.full((3,), float(step))})
    assert store.steps() == [0, 30, 40, 50]
    fresh = StateStore(tmp_path / "kept")
    assert float(fresh.get(40)["x"][0]) == 40
    fresh.back_to(30)
    assert fresh.steps() == [0, 30]
    assert newest_common(store.steps(), [0, 10, 30, 60]) == 30
    assert newest_common([0], [0, 5]) == 0


def test_states_are_of_one_lesson(data: lessons.DataSet, tmp_path: Path) -> None:
    mine = label_of(plan_for(data), {"weights": "1"})
    store = StateStore(tmp_path / "kept")
    assert not store.claim(mine)
    store.put(4, {"step": 4})
    assert not StateStore(tmp_path / "kept").claim(mine)
    assert store.steps() == [0, 4]
    for other in (
        label_of(plan_for(data, run="another"), {"weights": "1"}),
        label_of(plan_for(data), {"weights": "2"}),
    ):
        store.claim(mine)
        store.put(4, {"step": 4})
        assert StateStore(tmp_path / "kept").claim(other)
        assert store.steps() == [0]
    for plan in (
        plan_for(data, window=64, keep_every=10),
        plan_for(data, exchange="weights", window=1, keep_every=1),
    ):
        wide, apart = (
            plan.store(None),
            max(2 * plan.window, 2 * plan.steps_an_epoch if plan.exchange == "weights" else 0),
        )
        for step in range(plan.keep_every, 40 * plan.keep_every, plan.keep_every):
            wide.put(step, {})
        assert max(wide.steps()) - min(wide.steps()[1:]) >= apart, "the ends may be so far apart"


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "edgecompress", *map(str, arguments)]


def wait_for(path: Path, text: str, seconds: float = 60) -> str:
    """The file's content, once `text` is in it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        content = path.read_text() if path.is_file() else ""
        if text in content:
            return content
        time.sleep(0.1)
    raise AssertionError(f"'{text}' never came: {content}")


def test_the_commands_survive_a_killed_student(tmp_path: Path) -> None:
    """Two processes; the student is killed (SIGKILL) in the middle, started again, and ends with
    every sample counted once.
    """
    shared = ["--insecure", "--threads", "1", "--batch-size", "16"]
    with open(tmp_path / "teacher.log", "w") as log:
        teacher = subprocess.Popen(
            command(
                "teacher", "serve", "lenet5", "--host", "127.0.0.1", "--port", 0, *shared, "-o", "t"
            ),
            cwd=tmp_path,
            stdout=log,
            stderr=log,
        )
    try:
        port = wait_for(tmp_path / "teacher.log", "listening at").split("127.0.0.1:")[1].split()[0]
        attend = command(
            "student",
            "run",
            "lenet5",
            "--connect",
            f"127.0.0.1:{port}",
            "--epochs",
            3,
            "--run",
            "kill",
            "--keep-every",
            10,
            *shared,
            "-o",
            "s",
        )
        first = subprocess.Popen(
            attend, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 60
        while not list((tmp_path / "s" / "kept").glob("*.pt")) and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        again = subprocess.run(
            [*attend, "--resume", "--json"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert again.returncode == 0, again.stderr
        result = json.loads(again.stdout)
        assert result["samples"] == 3 * 1168
        assert result["payload_bytes"] == 3 * 1168 * 20, (
            "fp16 logits of ten classes; what came before the kill counts too"
        )
        assert result["breaks"] == 1, "a kill is one"
        assert [row["epoch"] for row in result["timeline"]] == [1, 2, 3]
        assert teacher.wait(60) == 0
        assert json.loads((tmp_path / "t" / "result.json").read_text())["students"] == ["student"]
    finally:
        teacher.kill()


@pytest.mark.parametrize("codec", ["fp16", "soft"])
def test_the_commands_survive_a_killed_teacher(codec: str, tmp_path: Path) -> None:
    """The teacher, which trains and is pruned, is killed (SIGKILL) and started again: the student
    ends with every sample counted once.
    """
    shared = ["--insecure", "--threads", "1", "--batch-size", "16", "--epochs", 4]
    pruned = ["--train", "--prune", "30%", "--step", "30%"]
    serve_it = command(
        "teacher", "serve", "lenet5", "--host", "127.0.0.1", *pruned, *shared, "-o", "t"
    )
    with open(tmp_path / "teacher.log", "w") as log:
        teacher = subprocess.Popen([*serve_it, "--port", "0"], cwd=tmp_path, stdout=log, stderr=log)
    port = wait_for(tmp_path / "teacher.log", "listening at").split("127.0.0.1:")[1].split()[0]
    options = [
        "--keep-every",
        10,
        "--run",
        "kill",
        "--codec",
        codec,
        "--window",
        8,
        *shared,
        "-o",
        "s",
    ]
    attend = command("student", "run", "lenet5", "--connect", f"127.0.0.1:{port}", *options)
    with open(tmp_path / "student.log", "w") as log:
        student = subprocess.Popen(attend, cwd=tmp_path, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while len(list((tmp_path / "t" / "kept").glob("*.pt"))) < 3 and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(teacher.pid, signal.SIGKILL)
        teacher.wait()
        with open(tmp_path / "teacher.log", "a") as log:
            teacher = subprocess.Popen(
                [*serve_it, "--port", port, "--resume"], cwd=tmp_path, stdout=log, stderr=log
            )
        assert student.wait(120) == 0, (tmp_path / "student.log").read_text()
        assert teacher.wait(60) == 0, (tmp_path / "teacher.log").read_text()
        result, taught = (
            json.loads((tmp_path / who / "result.json").read_text()) for who in ("s", "t")
        )
        assert result["samples"] == 4 * 1168
        assert result["breaks"] >= 1
        assert (
            "from step 0" not in (tmp_path / "teacher.log").read_text().split("listening at")[2]
        ), "it went on where it was"
        assert taught["params"] <= 0.7 * taught["params_before"]
    finally:
        student.kill()
        teacher.kill()


def test_bad_input_of_the_commands(tmp_path: Path) -> None:
    assert "--insecure" in one_line(
        run("student", "run", "mlp", "--connect", "127.0.0.1:1", cwd=tmp_path), 2
    )
    assert "HOST:PORT" in one_line(
        run("student", "run", "mlp", "--connect", "here", "--insecure", cwd=tmp_path), 2
    )
    assert "HOST:PORT" in one_line(
        run("student", "run", "mlp", "--connect", "here:99999", "--insecure", cwd=tmp_path), 2
    )
    near = ("student", "run", "mlp", "--connect", "127.0.0.1:1", "--insecure", "-q")
    assert "--resume without -o" in one_line(run(*near, "--resume", cwd=tmp_path), 2)
    assert "is a regression (r2)" in one_line(run(*near, "--data", "sine", cwd=tmp_path), 2)
    assert "is a regression (r2)" in one_line(
        run("teacher", "serve", "mlp", "--insecure", "--data", "sine", cwd=tmp_path), 2
    )
    assert "at least 1" in one_line(run(*near, "--epochs", 0, cwd=tmp_path), 2)
    assert "above 0" in one_line(run(*near, "--learning-rate", -1, cwd=tmp_path), 2)
    (tmp_path / "file").write_text("mine")
    assert "is a file" in one_line(run(*near, "-o", "file", cwd=tmp_path), 2)
    assert "is a file" in one_line(
        run("teacher", "serve", "mlp", "--insecure", "-o", "file", cwd=tmp_path), 2
    )
    away = run(
        "student",
        "run",
        "mlp",
        "--connect",
        "127.0.0.1:1",
        "--insecure",
        "--patience",
        "1s",
        "-q",
        cwd=tmp_path,
    )
    assert "stayed away" in one_line(away, 1)
    assert "'later' is not known" in one_line(
        run("teacher", "serve", "mlp", "--insecure", "--schedule", "later", cwd=tmp_path), 2
    )
    alone = run("teacher", "serve", "mlp", "--insecure", "--prune", "50%", cwd=tmp_path)
    assert "give --train too" in one_line(alone, 2)
    unknown = run(
        "student",
        "run",
        "mlp",
        "--connect",
        "127.0.0.1:1",
        "--insecure",
        "--loss",
        "hinge",
        "-q",
        cwd=tmp_path,
    )
    assert "'hinge' is not known: allowed are kl, softmax-mse, dkd" in one_line(unknown, 2)
    without = run(
        "student",
        "run",
        "mlp",
        "--connect",
        "127.0.0.1:1",
        "--insecure",
        "--features",
        "hint",
        "-q",
        cwd=tmp_path,
    )
    assert "belong to --exchange features" in one_line(without, 2)
    stale = run(
        "student",
        "run",
        "mlp",
        "--connect",
        "127.0.0.1:1",
        "--insecure",
        "--staleness",
        "3",
        "-q",
        cwd=tmp_path,
    )
    assert "give --mutual too" in one_line(stale, 2)
    bare = run(
        "student",
        "run",
        "mlp",
        "--connect",
        "127.0.0.1:1",
        "--insecure",
        "--exchange",
        "features",
        "-q",
        cwd=tmp_path,
    )
    assert "features need convolutions" in one_line(bare, 2)
    kept = (
        "student",
        "run",
        "mlp",
        "--connect",
        "127.0.0.1:1",
        "--insecure",
        "--patience",
        "1s",
        "-q",
        "-o",
        "s",
    )
    assert "stayed away" in one_line(run(*kept, cwd=tmp_path), 1)
    changed = run(*kept, "--resume", "--codec", "soft", "--alpha", "0.5", cwd=tmp_path)
    assert "a lesson with another alpha, codec" in one_line(changed, 2)
    assert "stayed away" in one_line(run(*kept, "--resume", cwd=tmp_path), 1)
    assert "--tls-key" in one_line(
        run("teacher", "serve", "mlp", "--tls-ca", "x.pem", cwd=tmp_path), 2
    )


def told_in_words(port: int, frames: list[object]) -> str:
    """What the teacher answers to raw frames."""
    channel = grpc.insecure_channel(f"127.0.0.1:{port}")
    stub = channel.stream_stream(
        wire.PATH, request_serializer=wire.encode, response_deserializer=wire.decode
    )
    try:
        last = list(stub(iter(frames), timeout=20))[-1]
        return str(json.loads(last.said).get("error", ""))
    finally:
        channel.close()


def hello(plan: dict[str, object], **more: object) -> list[object]:
    return list(
        wire.frames(
            wire.HELLO, said={"name": "x", "instance": "i", "plan": plan, "have": [], **more}
        )
    )


def test_whatever_is_sent_harms_its_own_stream_alone(
    data: lessons.DataSet, serving: list[Served]
) -> None:
    served = Served(data)
    serving.append(served)
    good, inputs = plan_for(data).as_dict(), plan_for(data, exchange="inputs")
    pixels = list(wire.frames(wire.WANT, **inputs.stamp(1), payload=b"12345"))
    for frames, words in (
        (hello({**good, "seed": "x"}), "plan: seed"),
        (hello({**good, "seed": 2**70}), "plan: seed"),
        (hello({**good, "samples": 10**9}), "plan: samples"),
        (hello({**good, "maps": [[1]]}), "plan: maps"),
        (hello({**good, "colour": 1}), "plan: colour"),
        (hello({**good, "augmentation": {"tilt": 3}}), "augmentation"),
        (hello({**good, "samples": 100}), "are not the teacher's"),
        (hello(good, have=["a"]), "not a student's message"),
        (hello({**inputs.as_dict(), "native": [1, 8, 8]}), "are none that this teacher reads"),
        ([*hello(inputs.as_dict()), *pixels], "5 bytes of pixels"),
        (
            [
                *hello(good),
                *wire.frames(wire.WANT, **{**plan_for(data).stamp(1), "digest": b"12345678"}),
            ],
            "other samples",
        ),
        ([*hello(good), *wire.frames(wire.WANT, run="r", step=10**6)], "start both ends again"),
        (
            [*hello(good), *wire.frames(wire.WEIGHTS, run="r", epoch=1)],
            "not one of exchange logits",
        ),
        ([wire.Frame(kind="hello", part=0, parts=0)], "without its beginning"),
        (list(wire.frames(wire.WANT)), "says hello first"),
    ):
        assert words in told_in_words(served.port, frames), words
        served.teacher.sessions.clear()  # its place, where it had one
    _, result = learned(data, served.port, plan_for(data))
    same(result.model, in_one_process(data).model)


def test_logits_that_are_no_numbers_end_one_stream(
    data: lessons.DataSet, serving: list[Served]
) -> None:
    served = Served(data, train=SETTINGS)
    serving.append(served)
    plan = plan_for(data, mutual=True)
    nothing = np.full((32, 10), np.nan, dtype="<f4").tobytes()
    said = told_in_words(
        served.port,
        [*hello(plan.as_dict()), *wire.frames(wire.SAY, **plan.stamp(1), payload=nothing)],
    )
    assert "not finite" in said
    assert served.error is None


def test_who_was_refused_may_come_again(data: lessons.DataSet, serving: list[Served]) -> None:
    """A teacher without maps refuses features; the same student then learns from logits."""
    served = Served(data, model="mlp")
    serving.append(served)
    mine = lessons.network("lenet5", data, 2).model
    maps = [list(size) for size in map_ends(mine, torch.zeros(1, *data.image_shape)).values()]
    with pytest.raises(UsageError, match="features need convolutions"):
        Student(
            mine, data, SETTINGS, plan_for(data, exchange="features", features="hint", maps=maps)
        ).attend(f"localhost:{served.port}", None, 5)
    time.sleep(0.5)
    assert served.thread.is_alive(), "who was refused is nobody to have taught"
    learned(data, served.port, plan_for(data))
    served.thread.join(10)
    assert served.error is None


def test_two_students_learn_from_maps_at_once(data: lessons.DataSet, serving: list[Served]) -> None:
    served = Served(data, students=2)
    serving.append(served)
    mine = lessons.network("lenet5", data, 2).model
    maps = [list(size) for size in map_ends(mine, torch.zeros(1, *data.image_shape)).values()]
    plan = plan_for(data, exchange="features", features="attention", maps=maps)
    students = {
        name: Student(lessons.network("lenet5", data, 2).model, data, SETTINGS, plan, name=name)
        for name in ("one", "two")
    }
    results = taught_together(served, students)
    same(results["one"].model, results["two"].model)


def test_a_teacher_that_goes_on_forgets_nothing_for_a_stranger(
    data: lessons.DataSet, serving: list[Served], tmp_path: Path
) -> None:
    """States that wait for the student of a lesson stay when another one says hello, and its place
    stays free.
    """

    def served(resume: bool) -> tuple[Teacher, int, grpc.Server]:
        teacher = Teacher(
            lessons.network("lenet5", data, 1).model,
            data,
            train=SETTINGS,
            states=tmp_path / "kept",
            resume=resume,
        )
        server, port = serve(teacher, "127.0.0.1:0", None)
        serving.append(SimpleNamespace(stop=lambda: server.stop(None).wait()))  # type: ignore[arg-type]
        threading.Thread(target=lambda: teacher.lesson(20), daemon=True).start()
        return teacher, port, server

    def student(**more: object) -> Student:
        return Student(
            lessons.network("mlp", data, 2).model,
            data,
            SETTINGS,
            plan_for(data, **more),
            states=tmp_path / "s",
        )

    def stopped(row: object) -> None:
        raise KeyboardInterrupt

    _, port, server = served(False)
    broken = student()
    broken.on_epoch = stopped
    with pytest.raises(KeyboardInterrupt):
        broken.attend(f"localhost:{port}", None, 5)
    server.stop(None).wait()
    before = sorted(path.name for path in (tmp_path / "kept").glob("*.pt"))
    assert before
    again, port, _ = served(True)
    stranger = Student(
        lessons.network("mlp", data, 2).model,
        data,
        SETTINGS,
        plan_for(data, keep_every=3),
        name="stranger",
    )
    with pytest.raises(UsageError, match="goes on with"):
        stranger.attend(f"localhost:{port}", None, 5)
    assert sorted(path.name for path in (tmp_path / "kept").glob("*.pt")) == before
    whole = student().attend(f"localhost:{port}", None, 20)
    assert whole.history
    assert again.steps == 14


def test_a_name_is_one_students(data: lessons.DataSet, serving: list[Served]) -> None:
    served = Served(data, train=SETTINGS, students=2)
    serving.append(served)
    first = Connection(f"localhost:{served.port}", None, plan_for(data), "same", "one machine")
    first.meet([], lambda _: None, 5)
    with pytest.raises(
        EdgecompressError, match="called 'same' is here already: give each a --name"
    ):
        Student(
            lessons.network("mlp", data, 2).model, data, SETTINGS, plan_for(data), name="same"
        ).attend(f"localhost:{served.port}", None, 1.0)
    first.close()


def test_a_lesson_that_gains_no_step_ends(data: lessons.DataSet, serving: list[Served]) -> None:
    """The teacher answers every hello, and then breaks off: that is not waiting for it."""
    served = Served(data)
    serving.append(served)

    def broken(*_: object) -> None:
        raise ConnectionLostError("out of order")

    served.teacher._answer = broken  # type: ignore[method-assign]
    start = time.monotonic()
    with pytest.raises(EdgecompressError, match=r"out of order.*no step was gained"):
        Student(lessons.network("mlp", data, 2).model, data, SETTINGS, plan_for(data)).attend(
            f"localhost:{served.port}", None, 2.0
        )
    assert time.monotonic() - start < 20


def test_the_result_is_there_before_the_teacher_hears_of_the_end(
    data: lessons.DataSet, serving: list[Served]
) -> None:
    served = Served(data)
    serving.append(served)
    order, told = list[str](), served.teacher._goodbye

    def goodbye(*arguments: object) -> object:
        order.append("the teacher hears")
        if len(order) < 3:
            raise ConnectionLostError("lost on the way")
        return told(*arguments)  # type: ignore[arg-type]

    served.teacher._goodbye = goodbye  # type: ignore[method-assign, assignment]
    student = Student(lessons.network("mlp", data, 2).model, data, SETTINGS, plan_for(data))
    student.attend(
        f"localhost:{served.port}",
        None,
        20,
        finished=lambda _: order.append("the result is written"),
    )
    assert order == ["the result is written", "the teacher hears", "the teacher hears"]
    served.thread.join(10)
    assert served.error is None


def test_a_checkpoint_reads_pixels_as_it_was_trained_to(
    data: lessons.DataSet, tmp_path: Path
) -> None:
    trained = lessons.network("lenet5", data, 1)
    other = replace(
        data, preprocess=replace(data.preprocess, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    )
    checkpoint.save(
        tmp_path / "model.safetensors", trained.model, trained.source, checkpoint.notes_for(other)
    )
    for whole in (data, None):
        again = lessons.network(str(tmp_path), whole, 0)
        assert again.preprocess == other.preprocess
        same(again.model, trained.model)
    with pytest.raises(UsageError, match="no checkpoint"):
        lessons.network("lenet5", None, 0)
    wide = replace(
        data, train=replace(data.train, pixels=torch.zeros(4, 3, 16, 16, dtype=torch.uint8))
    )
    with pytest.raises(UsageError, match="give the --image-size that it was trained with"):
        lessons.network(str(tmp_path), wide, 0)


def test_a_teacher_needs_no_data_when_it_is_told_all_pixels(
    data: lessons.DataSet, tmp_path: Path
) -> None:
    trained = lessons.network("lenet5", data, 1)
    checkpoint.save(
        tmp_path / "taught" / "model.safetensors",
        trained.model,
        trained.source,
        checkpoint.notes_for(data),
    )
    serve_it = command(
        "teacher",
        "serve",
        "taught",
        "--data",
        "none",
        "--host",
        "127.0.0.1",
        "--port",
        0,
        "--insecure",
        "-o",
        "t",
    )
    with open(tmp_path / "teacher.log", "w") as log:
        teacher = subprocess.Popen(serve_it, cwd=tmp_path, stdout=log, stderr=log)
    try:
        port = wait_for(tmp_path / "teacher.log", "listening at").split("127.0.0.1:")[1].split()[0]
        attend = (
            "student",
            "run",
            "mlp",
            "--connect",
            f"127.0.0.1:{port}",
            "--insecure",
            "--epochs",
            "1",
            "-q",
            "--patience",
            "5s",
        )
        assert "are not the teacher's" in one_line(run(*attend, "-o", "wrong", cwd=tmp_path), 2)
        done = run(*attend, "--exchange", "inputs", "--json", "-o", "s", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["samples"] == 1169
        assert teacher.wait(60) == 0
        assert json.loads((tmp_path / "t" / "result.json").read_text())["accuracy"] is None
    finally:
        teacher.kill()


@pytest.mark.parametrize("both_ways", [False, True])
def test_a_teacher_that_was_killed_at_the_very_end_has_what_it_learned(
    both_ways: bool, data: lessons.DataSet, tmp_path: Path
) -> None:
    """All students have heard of the end and gone: the teacher that is started again needs none of
    them.
    """
    teacher = Teacher(
        lessons.network("lenet5", data, 1).model, data, train=SETTINGS, states=tmp_path / "kept"
    )
    server, port = serve(teacher, "127.0.0.1:0", None)
    thread = threading.Thread(target=teacher.lesson, args=(30,), daemon=True)
    thread.start()
    plan = plan_for(data, mutual=both_ways)
    Student(lessons.network("mlp", data, 2).model, data, SETTINGS, plan).attend(
        f"localhost:{port}", None, 20
    )
    thread.join(20)
    server.stop(None).wait()
    again = Teacher(
        lessons.network("lenet5", data, 1).model,
        data,
        train=SETTINGS,
        states=tmp_path / "kept",
        resume=True,
    )
    again.lesson(5)
    assert again.steps == teacher.steps == plan.steps
    same(again.model, teacher.model)
