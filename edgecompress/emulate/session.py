"""One emulation: build and verify the network, start captures, run the roles as the user, inject
faults, and report what was measured.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from edgecompress import files, interrupts
from edgecompress.emulate import shell
from edgecompress.emulate.capture import Capture, capture
from edgecompress.emulate.faults import FaultRecord, Injector
from edgecompress.emulate.network import TEMPORARY, EmulatedNetwork, Note, check_network, network
from edgecompress.emulate.outcome import Outcome
from edgecompress.emulate.roles import Role, make_roles
from edgecompress.emulate.schema import EmulationResult, TrafficSummary
from edgecompress.emulate.settings import Fault, Settings, parse_fault
from edgecompress.emulate.topology_file import read_topology
from edgecompress.emulate.user import (
    MARKER,
    User,
    invoking_user,
    make_folder,
    need_root,
    rights_of,
    using,
)
from edgecompress.errors import EdgecompressError, UsageError

__all__ = [
    "MARKER",
    "Fault",
    "Settings",
    "User",
    "emulate",
    "invoking_user",
    "make_folder",
    "need_root",
    "parse_fault",
    "read_topology",
    "rights_of",
    "using",
]
START_S = 120.0
"""Seconds within which a teacher must listen."""


def emulate(settings: Settings, note: Note) -> EmulationResult:
    """Run one emulation. Writes `result.json` and the roles' folders into the output folder, which
    belongs to the invoking user; returns the result.

    Raises `EnvironmentMissingError` when a link is not as requested, `EdgecompressError` when a
    role fails or the lesson does not end in time, `UsageError` when a role reports bad input.
    """
    need_root()
    shell.needed()
    user = invoking_user()
    graph = read_topology(settings.topology, user, settings.link)
    root = settings.output
    is_new = not root.exists()
    make_folder(root, user)
    try:
        with interrupts.listening(signal.SIGTERM), network(graph, settings.backend, note) as net:
            check_network(net)
            result = _Lesson(settings, net, user, note).run()
    except UsageError:
        if is_new:
            with rights_of(user):
                shutil.rmtree(root)  # bad input leaves no partial result
        raise
    with rights_of(user):
        files.write_json(root / "result.json", result)
    return result


@dataclass(frozen=True)
class _Lesson:
    """Teachers and students on a network that was built and verified."""

    settings: Settings
    net: EmulatedNetwork
    user: User
    note: Note

    def run(self) -> EmulationResult:
        """Run the roles until all have ended; returns the result of the emulation."""
        captures: dict[str, Capture] = {}
        with ExitStack() as stack:
            pcaps = Path(stack.enter_context(_temporary("pcap")))
            keys = Path(stack.enter_context(_temporary("tls")))
            # the folders are root's, so that the next run may remove them; the keys are the user's
            keys.chmod(0o711)
            teachers, students = make_roles(
                self.settings, self.net, self.user, self.settings.output, keys / "keys"
            )
            try:
                for role in (*teachers, *students):
                    captures[role.name] = self._capture(role, pcaps)
                self.note(f"capturing at {', '.join(captures)}")
                _start_teachers(teachers)
                for student in students:
                    student.start()
                began = time.monotonic()
                faults = self._watch(teachers, students, began)
                wall_s = time.monotonic() - began
            finally:
                _stop(captures, *students, *teachers)
            self.note("reading the captures")
            _give(captures, pcaps, self.user)
            names = [student.name for student in students]
            traffic = summarise(captures, names, self.net.addresses, self.user)
            if self.settings.keep_pcap:
                with rights_of(self.user):
                    _keep(captures, self.settings.output)
        return Outcome(
            settings=self.settings,
            net=self.net,
            user=self.user,
            students={role.name: role.student_result() for role in students},
            teachers={role.name: role.result() for role in teachers},
            captures=captures,
            traffic=traffic,
            faults=faults,
            wall_s=wall_s,
        ).result()

    def _capture(self, role: Role, folder: Path) -> Capture:
        interface = self.net.access(role.name)[1]
        path = folder / f"{role.name}.pcap"
        return capture(role.name, interface, self.net.pid(role.name), path)

    def _watch(self, teachers: list[Role], students: list[Role], began: float) -> list[FaultRecord]:
        """Wait until all roles have ended, injecting faults when they are due.

        Raises `EdgecompressError` when a role fails or the time is over.
        """
        roles = (*students, *teachers)
        injector = Injector(self.settings.faults, self.net, teachers, students, self.note)
        while any(role.running() for role in roles) or injector.recovering():
            now = time.monotonic() - began
            if now > self.settings.timeout_s:
                raise EdgecompressError(
                    f"the lesson did not end within {self.settings.timeout_s:g} s: "
                    f"{students[0].name}: {students[0].last_line()}"
                )
            injector.step(now)
            for role in roles:
                if role.failed() and not injector.is_down(role):
                    raise role.failure("failed")
            time.sleep(0.05)
        return injector.finish()


def _temporary(kind: str) -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix=f"{TEMPORARY}{kind}-{os.getpid()}-")


def _start_teachers(teachers: list[Role]) -> None:
    for teacher in teachers:
        teacher.start()
    for teacher in teachers:
        teacher.wait_for_log("listening at", START_S)


def _stop(captures: dict[str, Capture], *roles: Role) -> None:
    for role in roles:
        if role.child is not None:
            shell.stop(role.child)
    for running in captures.values():
        running.stop()


def _give(captures: dict[str, Capture], folder: Path, user: User) -> None:
    """Let the user, and nobody else, read the captures in this folder of root's."""
    for done in captures.values():
        os.chown(done.path, user.uid, user.gid)
        done.path.chmod(0o400)
    folder.chmod(0o711)


def _keep(captures: dict[str, Capture], root: Path) -> None:
    """Copy the captures into `root`."""
    for host, done in captures.items():
        target = root / f"{host}.pcap"
        target.unlink(missing_ok=True)
        shutil.copyfile(done.path, target)


def summarise(
    captures: dict[str, Capture], students: list[str], addresses: dict[str, str], user: User
) -> TrafficSummary:
    """The traffic in all captures, read by Scapy in a process of `user`: what parses is not root.

    Raises `EdgecompressError` when they cannot be read.
    """
    request = {
        "captures": {host: str(done.path) for host, done in captures.items()},
        "students": students,
        "addresses": addresses,
    }
    module = "edgecompress.emulate.traffic"
    done = shell.python_as(user, "-m", module, request=json.dumps(request))
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise EdgecompressError(f"the captures cannot be read: {last}")
    return cast(TrafficSummary, json.loads(done.stdout))
