"""A lesson over a real connection on loopback: the same network as in one process, through breaks and kills."""

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

import pytest
import torch

from edgecompress import lesson as lessons
from edgecompress.data import load_data
from edgecompress.errors import EdgecompressError, UsageError
from edgecompress.methods.distill import learning_from, peer
from edgecompress.online.secure import Tls, make_certificates
from edgecompress.online.session import Plan, Shelf, newest_common
from edgecompress.online.student import Student
from edgecompress.online.teacher import Teacher, serve
from edgecompress.train.fit import FitResult, Hooks, Learner, fit, fit_together, label_loss
from edgecompress.train.settings import FitSettings
from tests.cli.test_cli import one_line, run

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data() -> lessons.DataSet:
    whole = load_data("digits")
    return replace(whole, train=whole.train.rows(torch.arange(200)), validation=whole.validation.rows(torch.arange(60)))


SETTINGS = FitSettings(2, batch_size=32, learning_rate=1e-3, precision="fp32")


def plan_for(data: lessons.DataSet, **more: object) -> Plan:
    values = Plan("r", "logits", "fp32", 3, 2, 32, len(data.train), 10, "digits", data.digest(), asdict(data.augmentation), 0, 4, 4)
    return replace(values, **more)  # type: ignore[arg-type]


class Served:
    """A teacher that serves on loopback, its lesson in a thread."""

    def __init__(self, data: lessons.DataSet, *, train: FitSettings | None = None, tls: Tls | None = None, model: str = "lenet5") -> None:
        self.teacher = Teacher(lessons.network(model, data, 1)[0], data, train=train)
        self.server, self.port = serve(self.teacher, "127.0.0.1:0", tls)
        self.error: EdgecompressError | None = None
        self.thread = threading.Thread(target=self._teach, daemon=True)
        self.thread.start()

    def _teach(self) -> None:
        try:
            self.teacher.lesson(30)
        except EdgecompressError as error:
            self.error = error

    def stop(self) -> None:
        self.server.stop(None).wait()


@pytest.fixture
def serving() -> Iterator[list[Served]]:
    running: list[Served] = []
    yield running
    for served in running:
        served.stop()


def learned(data: lessons.DataSet, port: int, plan: Plan, shelf: Path | None = None, tls: Tls | None = None) -> tuple[Student, FitResult]:
    student = Student(lessons.network("mlp", data, 2)[0], data, SETTINGS, plan, shelf=shelf)
    return student, student.attend(f"localhost:{port}", tls, 20)


def in_one_process(data: lessons.DataSet) -> FitResult:
    """The reference: the same student, the same fixed teacher, no network."""
    teacher = lessons.network("lenet5", data, 1)[0].eval()
    student = lessons.network("mlp", data, 2)[0]

    def targets(batch: object) -> torch.Tensor:
        with torch.no_grad():
            return teacher(batch.images).float()  # type: ignore[attr-defined, no-any-return]

    return fit(student, data, learning_from(targets), SETTINGS, seed=3, device=CPU)


def same(one: torch.nn.Module, other: torch.nn.Module) -> None:
    for (name, a), (_, b) in zip(one.state_dict().items(), other.state_dict().items(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("exchange", ["logits", "inputs"])
def test_the_student_is_that_of_one_process(exchange: str, data: lessons.DataSet, serving: list[Served]) -> None:
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


def test_a_teacher_that_trains_is_that_of_one_process(data: lessons.DataSet, serving: list[Served]) -> None:
    served = Served(data, train=SETTINGS)
    serving.append(served)
    _, result = learned(data, served.port, plan_for(data))
    served.thread.join(20)
    assert served.error is None
    learners = {
        "teacher": Learner(lessons.network("lenet5", data, 1)[0], label_loss, SETTINGS),
        "student": Learner(lessons.network("mlp", data, 2)[0], learning_from(peer("teacher")), SETTINGS),
    }
    reference = fit_together(learners, data, seed=3, device=CPU)
    same(served.teacher.model, reference["teacher"].model)
    same(result.model, reference["student"].model)


def test_the_teachers_own_weights_may_travel(data: lessons.DataSet, serving: list[Served]) -> None:
    served = Served(data)
    serving.append(served)
    student = Student(lessons.network("mlp", data, 2)[0], data, SETTINGS, plan_for(data, exchange="weights"))
    student.mentor = lessons.network("lenet5", data, 99)[0]
    result = student.attend(f"localhost:{served.port}", None, 20)
    same(result.model, in_one_process(data).model)
    assert student.tally.payload_bytes > 2 * 4 * 62_000


def test_a_training_goes_on_from_any_kept_step(data: lessons.DataSet) -> None:
    """What `fit` keeps is all that decides the rest: order, weights, moments, random numbers, the best epoch."""
    kept = []
    model = lessons.network("lenet5", data, 1)[0]
    whole = fit(model, data, label_loss, replace(SETTINGS, dropout=0.3), seed=5, device=CPU, hooks=Hooks(keep=kept.append, keep_every=3))
    assert [state["step"] for state in kept] == [3, 6, 9, 12]
    for state in kept:
        again = lessons.network("lenet5", data, 8)[0]
        result = fit(again, data, label_loss, replace(SETTINGS, dropout=0.3), seed=5, device=CPU, hooks=Hooks(begin=state))
        same(result.model, whole.model)
        assert [row.train_loss for row in result.history] == pytest.approx([row.train_loss for row in whole.history])


@pytest.mark.parametrize("codec", ["fp32", "soft"])
@pytest.mark.parametrize("training", [False, True])
def test_after_a_break_both_go_back_and_every_sample_counts_once(
    codec: str, training: bool, data: lessons.DataSet, serving: list[Served], tmp_path: Path
) -> None:
    """The connection is cut in the middle: the result is that of a lesson without a break."""
    results = []
    for broken in (False, True):
        served = Served(data, train=SETTINGS if training else None)
        serving.append(served)
        plan = plan_for(data, codec=codec, run=f"run {broken}")
        student = Student(lessons.network("mlp", data, 2)[0], data, SETTINGS, plan, shelf=tmp_path / str(broken))
        if broken:
            seen = [0]
            original = student._targets

            def targets(batch: object, student: Student = student, seen: list[int] = seen, original: object = original) -> torch.Tensor:
                seen[0] += 1
                if seen[0] == 7 and student._line is not None:
                    student._line.channel.close()  # the cable is pulled
                return original(batch)  # type: ignore[operator, no-any-return]

            student._targets = targets  # type: ignore[method-assign, assignment]
        results.append(student.attend(f"localhost:{served.port}", None, 20))
        assert student.tally.samples == 400
        assert student.tally.steps == 14
        assert student.tally.breaks == int(broken)
        served.thread.join(20)
        assert served.error is None
    same(results[0].model, results[1].model)


def test_patience_counts_from_the_break_not_from_the_beginning(data: lessons.DataSet, serving: list[Served]) -> None:
    """A lesson that went well for longer than the student is patient survives a break too."""
    served = Served(data)
    serving.append(served)
    student = Student(lessons.network("mlp", data, 2)[0], data, SETTINGS, plan_for(data))
    original, seen = student._targets, [0]

    def targets(batch: object) -> torch.Tensor:
        seen[0] += 1
        if seen[0] == 6 and student._line is not None:
            time.sleep(1.5)
            student._line.channel.close()
        return original(batch)  # type: ignore[arg-type]

    student._targets = targets  # type: ignore[method-assign, assignment]
    student.attend(f"localhost:{served.port}", None, 1.0)
    assert student.tally.breaks == 1
    assert student.tally.samples == 400


def test_tls_is_asked_of_both_ends(data: lessons.DataSet, serving: list[Served], tmp_path: Path) -> None:
    ends = make_certificates(tmp_path / "tls", {"teacher": ["127.0.0.1", "localhost"], "student": ["127.0.0.1"]})
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "tls").glob("*.key"))
    served = Served(data, tls=ends["teacher"])
    serving.append(served)
    with pytest.raises(EdgecompressError, match="stayed away"):
        Student(lessons.network("mlp", data, 2)[0], data, SETTINGS, plan_for(data)).attend(f"localhost:{served.port}", None, 1.0)
    foreign = make_certificates(tmp_path / "other", {"student": ["127.0.0.1"]})["student"]
    with pytest.raises(EdgecompressError, match="stayed away"):
        Student(lessons.network("mlp", data, 2)[0], data, SETTINGS, plan_for(data)).attend(f"localhost:{served.port}", foreign, 1.0)
    _, result = learned(data, served.port, plan_for(data), tls=ends["student"])
    same(result.model, in_one_process(data).model)


def test_other_data_or_another_seed_are_refused(data: lessons.DataSet, serving: list[Served]) -> None:
    served = Served(data)
    serving.append(served)
    with pytest.raises(UsageError, match="are not the teacher's"):
        learned(data, served.port, plan_for(data, data_digest="0" * 64))
    with pytest.raises(UsageError, match="classes"):
        learned(data, served.port, plan_for(data, classes=7))


def test_kept_steps(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "kept")
    for step in (10, 20, 30, 40, 50):
        shelf.put(step, {"step": step, "x": torch.full((3,), float(step))})
    assert shelf.steps() == [0, 30, 40, 50]
    fresh = Shelf(tmp_path / "kept")
    assert float(fresh.get(40)["x"][0]) == 40
    fresh.back_to(30)
    assert fresh.steps() == [0, 30]
    assert newest_common(shelf.steps(), [0, 10, 30, 60]) == 30
    assert newest_common([0], [0, 5]) == 0


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
    """Two processes; the student is killed (SIGKILL) in the middle, started again, and ends with every sample counted once."""
    shared = ["--insecure", "--threads", "1", "--batch-size", "16"]
    with open(tmp_path / "teacher.log", "w") as log:
        teacher = subprocess.Popen(command("teacher", "serve", "lenet5", "--host", "127.0.0.1", "--port", 0, *shared, "-o", "t"),
                                   cwd=tmp_path, stdout=log, stderr=log)  # fmt: skip
    try:
        port = wait_for(tmp_path / "teacher.log", "listening at").split("127.0.0.1:")[1].split()[0]
        attend = command("student", "run", "lenet5", "--connect", f"127.0.0.1:{port}", "--epochs", 3, "--run", "kill", "--keep-every", 10,
                         *shared, "-o", "s")  # fmt: skip
        first = subprocess.Popen(attend, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not list((tmp_path / "s" / "kept").glob("*.pt")) and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        again = subprocess.run([*attend, "--resume", "--json"], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
        assert again.returncode == 0, again.stderr
        result = json.loads(again.stdout)
        assert result["samples"] == 3 * 1168
        assert teacher.wait(60) == 0
        assert json.loads((tmp_path / "t" / "result.json").read_text())["students"] == ["student"]
    finally:
        teacher.kill()


def test_bad_input_of_the_commands(tmp_path: Path) -> None:
    assert "--insecure" in one_line(run("student", "run", "mlp", "--connect", "127.0.0.1:1", cwd=tmp_path), 2)
    assert "HOST:PORT" in one_line(run("student", "run", "mlp", "--connect", "here", "--insecure", cwd=tmp_path), 2)
    away = run("student", "run", "mlp", "--connect", "127.0.0.1:1", "--insecure", "--patience", "1s", "-q", cwd=tmp_path)
    assert "stayed away" in one_line(away, 1)
    assert "--tls-key" in one_line(run("teacher", "serve", "mlp", "--tls-ca", "x.pem", cwd=tmp_path), 2)
