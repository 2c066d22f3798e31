"""`teacher serve` and `student run` as processes: kills, and bad input."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest

from edgecompress import checkpoint
from edgecompress import lesson as lessons
from edgecompress.data import DataSet
from tests import forked
from tests.cli.test_cli import one_line, run

NOBODY = "127.0.0.1:1"
"""An address where no teacher is."""
DIGITS = 1168
"""Samples per epoch in batches of 16: a last batch of one sample is left out."""
SHARED = ("--insecure", "--threads", "1", "--batch-size", "16")


def command(*arguments: object) -> list[str]:
    return ["-m", "edgecompress", *map(str, arguments)]


def started(arguments: list[str], log: Path) -> forked.Forked:
    """A process in the folder of `log`, to which its output is appended."""
    return forked.start(arguments, cwd=log.parent, stdout=log, stderr=log)


def wait_for(path: Path, text: str, seconds: float = 60) -> str:
    """The content of the file, once `text` is in it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        content = path.read_text() if path.is_file() else ""
        if text in content:
            return content
        time.sleep(0.1)
    raise AssertionError(f"'{text}' never came: {content}")


def port_in(log: Path) -> str:
    """The port that a teacher listens at, once its log says so."""
    return wait_for(log, "listening at").split("127.0.0.1:")[1].split()[0]


def wait_for_states(folder: Path, number: int, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while len(list(folder.glob("*.pt"))) < number and time.monotonic() < deadline:
        time.sleep(0.02)


def test_killed_student_resumes(tmp_path: Path) -> None:
    """The student is killed (SIGKILL) in the middle, started again, and ends with every sample
    counted once.
    """
    serve = command("teacher", "serve", "lenet5", "--host", "127.0.0.1", "--port", 0)
    teacher = started([*serve, *SHARED, "-o", "t"], tmp_path / "teacher.log")
    try:
        address = f"127.0.0.1:{port_in(tmp_path / 'teacher.log')}"
        options = ("--epochs", 3, "--run", "kill", "--keep-every", 10, *SHARED, "-o", "s")
        attend = command("student", "run", "lenet5", "--connect", address, *options)
        first = started(attend, tmp_path / "student.log")
        wait_for_states(tmp_path / "s" / "kept", 1)
        os.kill(first.pid, signal.SIGKILL)
        first.wait()

        again = forked.run([*attend, "--resume", "--json"], cwd=tmp_path, timeout=120)
        assert again.returncode == 0, again.stderr
        result = json.loads(again.stdout)
        assert result["samples"] == 3 * DIGITS
        assert result["payload_bytes"] == 3 * DIGITS * 20, (
            "fp16 logits of ten classes; what came before the kill counts too"
        )
        assert result["breaks"] == 1, "a kill is one"
        assert [row["epoch"] for row in result["timeline"]] == [1, 2, 3]
        assert teacher.wait(60) == 0
        assert json.loads((tmp_path / "t" / "result.json").read_text())["students"] == ["student"]
    finally:
        teacher.kill()


@pytest.mark.parametrize("codec", ["fp16", "soft"])
def test_killed_teacher_resumes(codec: str, tmp_path: Path) -> None:
    """The teacher, which trains and is pruned, is killed (SIGKILL) and started again: the student
    ends with every sample counted once.
    """
    shared = (*SHARED, "--epochs", 4)
    pruned = ("--train", "--prune", "30%", "--step", "30%")
    serve = command(
        "teacher", "serve", "lenet5", "--host", "127.0.0.1", *pruned, *shared, "-o", "t"
    )
    log = tmp_path / "teacher.log"
    teacher = started([*serve, "--port", "0"], log)
    port = port_in(log)
    options = ("--keep-every", 10, "--run", "kill", "--codec", codec, "--window", 8)
    attend = command("student", "run", "lenet5", "--connect", f"127.0.0.1:{port}", *options)
    student = started([*attend, *map(str, shared), "-o", "s"], tmp_path / "student.log")
    try:
        wait_for_states(tmp_path / "t" / "kept", 3)
        os.kill(teacher.pid, signal.SIGKILL)
        teacher.wait()
        teacher = started([*serve, "--port", port, "--resume"], log)
        assert student.wait(120) == 0, (tmp_path / "student.log").read_text()
        assert teacher.wait(60) == 0, log.read_text()

        learned, taught = (
            json.loads((tmp_path / who / "result.json").read_text()) for who in ("s", "t")
        )
        assert learned["samples"] == 4 * DIGITS
        assert learned["breaks"] == 1, "attempts to connect again are none"
        said = (tmp_path / "student.log").read_text()
        assert re.search(r"epoch 4: validation [\d.]+% \(95 % [\d.]+ to [\d.]+, n \d+\)", said)
        second_start = log.read_text().split("listening at")[2]
        assert "from step 0" not in second_start, "it continued where it was"
        assert taught["params"] <= 0.7 * taught["params_before"]
    finally:
        student.kill()
        teacher.kill()


def test_teacher_without_data_learns_all_pixels_from_the_student(
    data: DataSet, tmp_path: Path
) -> None:
    trained = lessons.network("lenet5", data, 1)
    checkpoint.save(
        tmp_path / "taught" / "model.safetensors",
        trained.model,
        trained.source,
        checkpoint.notes_for(data),
    )
    log = tmp_path / "teacher.log"
    listen = ("--host", "127.0.0.1", "--port", 0, "--insecure", "-o", "t")
    teacher = started(command("teacher", "serve", "taught", "--data", "none", *listen), log)
    try:
        address = f"127.0.0.1:{port_in(log)}"
        options = ("--connect", address, "--insecure", "--epochs", "1", "-q", "--patience", "5s")
        attend = ("student", "run", "mlp", *options)
        assert "are not the teacher's" in one_line(run(*attend, "-o", "wrong", cwd=tmp_path), 2)
        done = run(*attend, "--exchange", "inputs", "--json", "-o", "s", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["samples"] == 1169
        assert teacher.wait(60) == 0
        assert json.loads((tmp_path / "t" / "result.json").read_text())["accuracy"] is None
    finally:
        teacher.kill()


STUDENT = ("student", "run", "mlp", "--connect", NOBODY, "--insecure", "-q")
TEACHER = ("teacher", "serve", "mlp", "--insecure")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("student", "run", "mlp", "--connect", NOBODY), "--insecure"),
        (("student", "run", "mlp", "--connect", "here", "--insecure"), "HOST:PORT"),
        (("student", "run", "mlp", "--connect", "here:99999", "--insecure"), "HOST:PORT"),
        ((*STUDENT, "--resume"), "--resume without -o"),
        ((*STUDENT, "--data", "sine"), "is a regression (r2)"),
        ((*TEACHER, "--data", "sine"), "is a regression (r2)"),
        ((*STUDENT, "--epochs", 0), "at least 1"),
        ((*STUDENT, "--learning-rate", -1), "greater than 0"),
        ((*STUDENT, "-o", "file"), "is a file"),
        ((*TEACHER, "-o", "file"), "is a file"),
        ((*TEACHER, "--schedule", "later"), "'later' is not one of 'early', 'middle', 'late'"),
        ((*TEACHER, "--prune", "50%"), "give --train too"),
        ((*STUDENT, "--loss", "hinge"), "'hinge' is not one of 'kl', 'softmax-mse', 'dkd'"),
        ((*STUDENT, "--features", "hint"), "belong to --exchange features"),
        ((*STUDENT, "--staleness", "3"), "give --mutual too"),
        ((*STUDENT, "--exchange", "features"), "features need convolutions"),
        ((*STUDENT, "--exchange", "gradients"), "allowed are logits, inputs, features, weights"),
        (("teacher", "serve", "mlp", "--tls-ca", "x.pem"), "--tls-key"),
    ],
)
def test_bad_input(arguments: tuple[object, ...], part: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    assert part in one_line(run(*arguments, cwd=tmp_path), 2)


def test_absent_teacher_and_a_changed_lesson(tmp_path: Path) -> None:
    attend = (*STUDENT, "--patience", "1s", "-o", "s")
    assert "stayed away" in one_line(run(*attend, cwd=tmp_path), 1)
    changed = run(*attend, "--resume", "--codec", "soft", "--alpha", "0.5", cwd=tmp_path)
    assert "a lesson with another alpha, codec" in one_line(changed, 2)
    assert "stayed away" in one_line(run(*attend, "--resume", cwd=tmp_path), 1)
