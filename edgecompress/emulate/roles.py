"""The roles of an emulation: teachers and students, each a process of the user on its host."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import cast

from edgecompress.emulate import certificates, shell
from edgecompress.emulate.network import EmulatedNetwork
from edgecompress.emulate.schema import RoleResult, StudentResult
from edgecompress.emulate.settings import Settings
from edgecompress.emulate.topology import Host
from edgecompress.emulate.user import User, environment, rights_of
from edgecompress.errors import EdgecompressError, UsageError
from edgecompress.measure.processes import command_of
from edgecompress.online.codec import TRAINING

PORT = 50051
ENDED = (0, 3)
"""Exit codes of a role that has written its result (3: a target was missed)."""
TEACHER_MODEL = "resnet20"
STUDENT_MODEL = "lenet5"


class Role:
    """A teacher or a student that runs on its host."""

    def __init__(
        self, net: EmulatedNetwork, host: Host, user: User, command: list[str], folder: Path
    ) -> None:
        self.net = net
        self.host = host
        self.user = user
        self.command = command
        self.folder = folder
        self.log = folder / f"{host.name}.log"
        self.child: subprocess.Popen[str] | None = None
        self.starts = 0

    @property
    def name(self) -> str:
        """The name of its host."""
        return self.host.name

    def start(self, *more: str) -> None:
        """Start the process, the first time or again, with `more` options."""
        command = shell.as_user(self.user.uid, self.user.gid, *self.command, *more)
        roles = sum(bool(host.role) for host in self.net.graph.hosts)
        self.starts += 1
        with ExitStack() as stack:
            with rights_of(self.user):
                # no link, and no pipe that nobody reads: the user may have put one there
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
                log = stack.enter_context(open(os.open(self.log, flags, 0o666), "a"))
            self.child = shell.start(
                self.net.command(self.name, *command),
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=environment(self.user, roles),
            )

    def wait_for_log(self, text: str, seconds: float) -> None:
        """Wait until the log holds `text` once per start.

        Raises `EdgecompressError` with the last line of the log when the process ends before, or
        `seconds` are over.
        """
        deadline = time.monotonic() + seconds
        while self._logged().count(text) < self.starts:
            if not self.running() or time.monotonic() > deadline:
                raise self.failure("did not start")
            time.sleep(0.05)

    def last_line(self) -> str:
        """The last line of the log."""
        lines = self._logged().strip().splitlines()
        return lines[-1] if lines else "its log is empty"

    def _logged(self) -> str:
        with rights_of(self.user):
            return self.log.read_text() if self.log.is_file() else ""

    def failure(self, what: str) -> EdgecompressError:
        """The error for a role that ended; its bad input (exit code 2) is ours."""
        code = self.child.poll() if self.child is not None else None
        kind = UsageError if code == UsageError.exit_code else EdgecompressError
        return kind(f"{self.name} {what}: {self.last_line()}")

    def running(self) -> bool:
        """True while the process runs."""
        return self.child is not None and self.child.poll() is None

    def failed(self) -> bool:
        """True if the process ended without a result."""
        return self.child is not None and self.child.poll() not in (None, *ENDED)

    def result(self) -> RoleResult:
        """The role's `result.json`. Raises `EdgecompressError` when there is none."""
        path = self.folder / self.name / "result.json"
        with rights_of(self.user):
            text = path.read_text() if path.is_file() else None
        if text is None:
            raise EdgecompressError(f"{self.name} left no result: {self.last_line()}")
        return cast(RoleResult, json.loads(text))

    def student_result(self) -> StudentResult:
        """The student's `result.json`. Raises `EdgecompressError` when there is none."""
        return cast(StudentResult, self.result())


def make_roles(
    settings: Settings, net: EmulatedNetwork, user: User, root: Path, keys: Path
) -> tuple[list[Role], list[Role]]:
    """Teachers and students with their commands, not started.

    Student n learns from teacher n modulo the number of teachers. The keys of the run are written
    to `keys`, unless it is insecure, and belong to `user`.
    """
    teachers = net.graph.of_role("teacher")
    students = net.graph.of_role("student")
    security = _security(settings, net, user, keys)
    # kept states of another run must not be taken for those of this one
    run = secrets.token_hex(4)

    serving = []
    for place, teacher in enumerate(teachers):
        count = len(students[place :: len(teachers)])
        options = [*settings.teacher_options, *security[teacher.name]]
        words = _serve(settings, net, teacher, count)
        command = [*words, *settings.options, *options, "-o", str(root / teacher.name)]
        serving.append(Role(net, teacher, user, _python(*command, "--exist-ok"), root))

    learning = []
    for number, student in enumerate(students):
        teacher = teachers[number % len(teachers)]
        options = [*settings.student_options, *security[student.name]]
        words = _learn(settings, net, student, teacher, run)
        command = [*words, *settings.options, *options, "-o", str(root / student.name)]
        learning.append(Role(net, student, user, _python(*command, "--resume"), root))
    return serving, learning


def _python(*words: str) -> list[str]:
    return [*command_of("edgecompress"), *words]


def _serve(settings: Settings, net: EmulatedNetwork, teacher: Host, students: int) -> list[str]:
    trains = settings.train_teacher and settings.exchange in TRAINING
    words = ["teacher", "serve", _teacher_model(settings, teacher)]
    words += ["--host", net.addresses[teacher.name], "--port", str(PORT)]
    words += ["--train"] if trains else []
    return [*words, "--students", str(students)]


def _learn(
    settings: Settings, net: EmulatedNetwork, student: Host, teacher: Host, run: str
) -> list[str]:
    words = ["student", "run", settings.student or student.model or STUDENT_MODEL]
    words += ["--connect", f"{net.addresses[teacher.name]}:{PORT}"]
    words += ["--exchange", settings.exchange, "--codec", settings.codec]
    words += ["--name", student.name, "--run", run]
    if settings.exchange == "weights":
        words += ["--teacher-model", _teacher_model(settings, teacher)]
    return words


def _teacher_model(settings: Settings, teacher: Host) -> str:
    return settings.teacher or teacher.model or TEACHER_MODEL


def _security(
    settings: Settings, net: EmulatedNetwork, user: User, keys: Path
) -> Mapping[str, Sequence[str]]:
    """The TLS options of every host with a role; certificates are created where needed."""
    hosts = [*net.graph.of_role("teacher"), *net.graph.of_role("student")]
    if settings.insecure:
        return {host.name: ["--insecure"] for host in hosts}
    return certificates.make(keys, {host.name: net.addresses[host.name] for host in hosts}, user)
