"""One emulation: the network stands and is right, captures listen, roles run as the user, faults
happen, and what was measured is told.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgecompress import files
from edgecompress.emulate import shell
from edgecompress.emulate.capture import Capture, capture
from edgecompress.emulate.network import LEFT, Network, check_network, network
from edgecompress.emulate.topology import Graph, Host, graph_from
from edgecompress.errors import EdgecompressError, EnvironmentMissingError, UsageError
from edgecompress.measure import machine
from edgecompress.online.codec import TRAINING
from edgecompress.units import parse_duration

PORT = 50051
MARKER = ".edgecompress-emulate"
"""A file that says whose an output folder is: everything below it is given to the invoking user."""
ENDED = (0, 3)
"""Exit codes of a role that has written its result."""
RECONCILED = 0.01
"""Share by which captured bytes and the kernel's counters may differ."""
FAULT = re.compile(r"(link-down|kill-student|kill-teacher)@([^:]+)(?::(.+))?|loss=(\d+(?:\.\d+)?)%")


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong at `at_s` after the start of the lesson; `for_s` for a link that
    comes back.
    """

    kind: str
    at_s: float
    for_s: float = 0.0


@dataclass(frozen=True)
class Settings:
    """What an emulation is told. `options` go to both roles, the others to students or teachers
    alone.
    """

    topology: Path
    output: Path
    exchange: str = "logits"
    codec: str = "fp16"
    backend: str = "auto"
    teacher: str | None = None
    student: str | None = None
    train_teacher: bool = True
    insecure: bool = False
    keep_pcap: bool = False
    timeout_s: float = 1800.0
    link: dict[str, Any] = field(default_factory=dict)
    faults: tuple[Fault, ...] = ()
    options: tuple[str, ...] = ()
    student_options: tuple[str, ...] = ()
    teacher_options: tuple[str, ...] = ()


@dataclass(frozen=True)
class User:
    """Whose files these are, and who the roles are."""

    uid: int
    gid: int
    name: str
    invoked: bool


def invoking_user() -> User:
    """Who called sudo, or the caller."""
    try:
        uid, gid = (
            int(os.environ.get("SUDO_UID", os.getuid())),
            int(os.environ.get("SUDO_GID", os.getgid())),
        )
    except ValueError as error:
        raise UsageError(
            f"SUDO_UID and SUDO_GID are the numbers of a user and a group: {error}"
        ) from error
    with contextlib.suppress(KeyError):
        return User(uid, gid, pwd.getpwuid(uid).pw_name, "SUDO_UID" in os.environ)
    return User(uid, gid, str(uid), "SUDO_UID" in os.environ)


def need_root() -> None:
    """Raises `EnvironmentMissingError` with the exact line that mends it."""
    if os.geteuid() != 0:
        beside = Path(sys.executable).with_name("edgecompress")
        program = str(beside) if beside.is_file() else shutil.which("edgecompress") or str(beside)
        words = shlex.join([str(Path(program).resolve()), *sys.argv[1:]])
        raise EnvironmentMissingError(f"namespaces and captures need root: run sudo {words}")


def parse_fault(text: str) -> tuple[Fault | None, dict[str, Any]]:
    """A fault of `link-down@10s:5s`, `kill-student@20s`, `kill-teacher@20s`, or the links' property
    of `loss=5%`.
    """
    found = FAULT.fullmatch(text)
    if found is None or (
        (found[1] == "link-down") != (found[3] is not None and found[4] is None)
        and found[4] is None
    ):
        raise UsageError(
            f"fault '{text}' is not known: write link-down@10s:5s, kill-student@20s, "
            "kill-teacher@20s or loss=5%"
        )
    if found[4] is not None:
        return None, {"loss": float(found[4])}
    return Fault(
        found[1], parse_duration(found[2]), parse_duration(found[3]) if found[3] else 0.0
    ), {}


def read_topology(path: Path, user: User, link: dict[str, Any]) -> Graph:
    """The checked graph of a topology file, whose code runs as `user` in a process of its own."""
    command = shell.as_user(
        user.uid, user.gid, sys.executable, "-m", "edgecompress.emulate.topology", str(path)
    )
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=60, env=_environment(user)
    )
    lines = done.stdout.strip().splitlines()
    try:
        answer = json.loads(lines[-1])
    except (IndexError, ValueError) as error:
        said = " ".join((done.stderr or "it printed nothing").split())[-300:]
        raise UsageError(f"topology '{path}' cannot be read: {said}") from error
    if not isinstance(answer, dict) or not (
        "error" in answer or {"name", "hosts", "switches", "links"} <= {*answer}
    ):
        raise UsageError(
            f"topology '{path}' prints after its graph: {' '.join(lines[-1].split())[:100]}; "
            "let it print nothing at its end"
        )
    if "error" in answer:
        raise UsageError(str(answer["error"]))
    return graph_from(answer, link)


def _environment(user: User, roles: int = 1) -> dict[str, str]:
    """The roles' environment: no proxies, the user's own home and caches, and for each of `roles`
    its part of the cores.
    """
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.lower().endswith("_proxy") and not key.startswith("SUDO_")
    }
    if roles > 1:
        kept |= {
            "OMP_WAIT_POLICY": "PASSIVE",
            "EDGECOMPRESS_THREADS": str(max(1, machine.cores() // roles)),
        }
    if user.invoked:
        with contextlib.suppress(KeyError):
            kept["HOME"] = pwd.getpwuid(user.uid).pw_dir
        kept.pop("XDG_CACHE_HOME", None)
        kept |= {"USER": user.name, "LOGNAME": user.name}
    return kept


class Role:
    """A teacher or a student that runs on its host."""

    def __init__(
        self, net: Network, host: Host, user: User, command: list[str], folder: Path
    ) -> None:
        self.net, self.host, self.user, self.command, self.folder = net, host, user, command, folder
        self.log = folder / f"{host.name}.log"
        self.child: subprocess.Popen[str] | None = None
        self.starts = 0

    def start(self, *more: str) -> None:
        """Start it, or start it again."""
        wrapped = shell.as_user(self.user.uid, self.user.gid, *self.command, *more)
        self.starts += 1
        stream = open(self.log, "a")  # noqa: SIM115 (the child keeps it)
        self.child = shell.start(
            self.net.command(self.host.name, *wrapped),
            stdout=stream,
            stderr=stream,
            cwd=self.folder,
            env=_environment(self.user, sum(bool(host.role) for host in self.net.graph.hosts)),
        )
        stream.close()

    def wait_until_said(self, text: str, seconds: float) -> None:
        """Until its log holds `text` as often as it was started. Raises `EdgecompressError` with
        its last line when it ends before.
        """
        deadline = time.monotonic() + seconds
        while self.log.read_text().count(text) < self.starts:
            if self.child is None or self.child.poll() is not None or time.monotonic() > deadline:
                raise self.failure("did not start")
            time.sleep(0.05)

    def last_line(self) -> str:
        """What it said last."""
        lines = self.log.read_text().strip().splitlines() if self.log.is_file() else []
        return lines[-1] if lines else "it said nothing"

    def failure(self, what: str) -> EdgecompressError:
        """The error of a role that ended: bad input (exit code 2) is bad input of the emulation."""
        kind = (
            UsageError
            if self.child is not None and self.child.poll() == UsageError.exit_code
            else EdgecompressError
        )
        return kind(f"{self.host.name} {what}: {self.last_line()}")

    def running(self) -> bool:
        """Is it?"""
        return self.child is not None and self.child.poll() is None

    def ended_well(self) -> bool:
        """Did it end with a result (exit code 0, or 3: a target was missed)?"""
        return self.child is not None and self.child.poll() in ENDED

    def result(self) -> dict[str, Any]:
        """What it wrote. Raises `EdgecompressError` when there is nothing."""
        path = self.folder / self.host.name / "result.json"
        if not path.is_file():
            raise EdgecompressError(f"{self.host.name} left no result: {self.last_line()}")
        return dict(json.loads(path.read_text()))


def emulate(settings: Settings, note: Callable[[str], None]) -> dict[str, Any]:
    """Run one emulation; writes `result.json` and the roles' folders into the output, which is the
    user's. Returns the result.

    Raises `EnvironmentMissingError` when a link is not what was asked, `EdgecompressError` when a
    role fails or nothing moves any more.
    """
    need_root()
    shell.needed()
    user = invoking_user()
    graph = read_topology(settings.topology, user, settings.link)
    root, fresh = settings.output, not settings.output.exists()
    make_folder(root, user)
    try:
        with _interruptible(), network(graph, settings.backend, note) as net:
            check_network(net)
            try:
                result = _lesson(settings, net, user, root, note)
            finally:
                _own(root, user)
    except UsageError:
        if fresh:
            shutil.rmtree(root)  # bad input leaves no half result
        raise
    files.write_json(root / "result.json", result)
    _own(root, user)
    return result


def make_folder(root: Path, user: User) -> None:
    """The folder of an emulation, marked as such; it and the folders made on the way to it are the
    user's.
    """
    made = [path for path in (root, *root.parents) if not path.exists()]
    root.mkdir(parents=True, exist_ok=True)
    for path in made:
        os.chown(path, user.uid, user.gid)
    (root / MARKER).touch()
    _own(root, user)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM ends an emulation like Ctrl-C: everything is cleaned up."""

    def end(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _own(root: Path, user: User) -> None:
    for path in (root, *root.rglob("*")):
        with contextlib.suppress(FileNotFoundError):
            os.chown(path, user.uid, user.gid, follow_symlinks=False)


def _roles(
    settings: Settings, net: Network, user: User, root: Path, keys: Path
) -> tuple[list[Role], list[Role]]:
    """Teachers and students with their commands; student n learns from teacher n modulo their
    number. The run's `keys` are the user's.
    """
    python = [sys.executable, "-m", "edgecompress"]
    teachers, students = net.graph.of_role("teacher"), net.graph.of_role("student")
    pupils = {
        teacher.name: [s for n, s in enumerate(students) if n % len(teachers) == place]
        for place, teacher in enumerate(teachers)
    }
    secured: dict[str, list[str]] = {host.name: ["--insecure"] for host in (*teachers, *students)}
    if not settings.insecure:
        from edgecompress.emulate.certificates import make

        secured = make(
            keys, {host.name: net.addresses[host.name] for host in (*teachers, *students)}
        )
        _own(keys, user)
    run = secrets.token_hex(4)  # no state of another run may be taken for this one's
    made_teachers = []
    for teacher in teachers:
        model = settings.teacher or teacher.model or "resnet20"
        train = ["--train"] if settings.train_teacher and settings.exchange in TRAINING else []
        serve = [
            "teacher",
            "serve",
            model,
            "--host",
            net.addresses[teacher.name],
            "--port",
            str(PORT),
        ]
        count = ["--students", str(len(pupils[teacher.name]))]
        place = ["-o", str(root / teacher.name), "--exist-ok"]
        command = [
            *python,
            *serve,
            *train,
            *count,
            *settings.options,
            *settings.teacher_options,
            *secured[teacher.name],
            *place,
        ]
        made_teachers.append(Role(net, teacher, user, command, root))
    made_students = []
    for number, student in enumerate(students):
        model = settings.student or student.model or "lenet5"
        teacher = teachers[number % len(teachers)]
        extra = (
            ["--teacher-model", settings.teacher or teacher.model or "resnet20"]
            if settings.exchange == "weights"
            else []
        )
        command = [
            *python,
            "student",
            "run",
            model,
            "--connect",
            f"{net.addresses[teacher.name]}:{PORT}",
            "--exchange",
            settings.exchange,
            "--codec",
            settings.codec,
            "--name",
            student.name,
            "--run",
            run,
            *extra,
            *settings.options,
            *settings.student_options,
            *secured[student.name],
            "-o",
            str(root / student.name),
            "--resume",
        ]
        made_students.append(Role(net, student, user, command, root))
    return made_teachers, made_students


def _lesson(
    settings: Settings, net: Network, user: User, root: Path, note: Callable[[str], None]
) -> dict[str, Any]:
    captures: dict[str, Capture] = {}
    with contextlib.ExitStack() as stack:
        folders = (
            tempfile.TemporaryDirectory(prefix=f"{LEFT}{kind}-{os.getpid()}-")
            for kind in ("pcap", "tls")
        )
        name, keys = (stack.enter_context(folder) for folder in folders)
        Path(keys).chmod(
            0o711
        )  # root's, so that the next run may remove it; what is in it is the user's
        teachers, students = _roles(settings, net, user, root, Path(keys) / "keys")
        try:
            for role in (*teachers, *students):
                interface = net.access(role.host.name)[1]
                captures[role.host.name] = capture(
                    role.host.name,
                    interface,
                    net.pid(role.host.name),
                    Path(name) / f"{role.host.name}.pcap",
                )
            note(f"capturing at {', '.join(captures)}")
            for teacher in teachers:
                teacher.start()
            for teacher in teachers:
                teacher.wait_until_said("listening at", 120)
            for student in students:
                student.start()
            began = time.monotonic()
            happened = _watch(settings, net, teachers, students, began, note)
            wall_s = time.monotonic() - began
        finally:
            for role in (*students, *teachers):
                if role.child is not None:
                    shell.stop(role.child)
            for one in captures.values():
                one.stop()
        note("reading the captures")
        traffic = _traffic(captures, [s.host.name for s in students], net.addresses)
        if settings.keep_pcap:
            for host, one in captures.items():
                (root / f"{host}.pcap").unlink(
                    missing_ok=True
                )  # never through a link that a role has put there
                shutil.copyfile(one.path, root / f"{host}.pcap")
    return _result(settings, net, user, teachers, students, captures, traffic, happened, wall_s)


def _watch(
    settings: Settings,
    net: Network,
    teachers: list[Role],
    students: list[Role],
    began: float,
    note: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Until all roles ended: faults happen at their time, and who was killed starts again. Raises
    `EdgecompressError` when a role fails.
    """
    happened: list[dict[str, Any]] = []
    waiting = sorted(settings.faults, key=lambda fault: fault.at_s)
    mending: list[tuple[float, Callable[[], None], str]] = []
    while any(role.running() for role in (*teachers, *students)) or mending:
        now = time.monotonic() - began
        if now > settings.timeout_s:
            raise EdgecompressError(
                f"the lesson did not end within {settings.timeout_s:g} s: "
                f"{students[0].host.name}: {students[0].last_line()}"
            )
        while waiting and waiting[0].at_s <= now:
            fault = waiting.pop(0)
            row: dict[str, Any] = {"kind": fault.kind, "at_s": round(now, 2), "for_s": fault.for_s}
            happened.append(row)
            role = (teachers if fault.kind == "kill-teacher" else students)[0]
            if fault.kind != "link-down" and not role.running():
                row |= {"at_s": None, "why_not": f"{role.host.name} was not running"}
                continue
            note(f"fault: {fault.kind} at {now:.1f} s")
            mending.append((now + max(fault.for_s, 0.5), *_strike(fault, net, teachers, students)))
        for item in [item for item in mending if item[0] <= now]:
            mending.remove(item)
            item[1]()
            note(f"mended: {item[2]}")
        for role in (*students, *teachers):
            struck = any(text == f"{role.host.name} started again" for _, _, text in mending)
            if role.child is not None and role.child.poll() not in (None, *ENDED) and not struck:
                raise role.failure("failed")
        time.sleep(0.05)
    for fault in waiting:
        happened.append(
            {
                "kind": fault.kind,
                "at_s": None,
                "for_s": fault.for_s,
                "why_not": "the lesson had ended",
            }
        )
    return happened


def _strike(
    fault: Fault, net: Network, teachers: list[Role], students: list[Role]
) -> tuple[Callable[[], None], str]:
    """Let it happen; how to mend it, and what that is."""
    if fault.kind == "link-down":
        host = students[0].host.name
        interface, pid = net.access(host)[1], net.pid(host)
        shell.run(*shell.inside(pid), "ip", "link", "set", interface, "down")
        neighbours = [(name, address) for name, address in net.addresses.items() if name != host]

        def up() -> None:
            shell.run(*shell.inside(pid), "ip", "link", "set", interface, "up")
            for name, address in neighbours:
                other, there = net.access(name)[1], net.pid(name)
                said = shell.run(*shell.inside(there), "ip", "-o", "link", "show", "dev", other)
                hardware = said.split("link/ether ")[1].split()[0]
                shell.run(
                    *shell.inside(pid),
                    "ip",
                    "neigh",
                    "replace",
                    address,
                    "lladdr",
                    hardware,
                    "dev",
                    interface,
                )

        return up, f"link of {host}"
    role = (students if fault.kind == "kill-student" else teachers)[0]
    if role.child is not None:
        shell.stop(role.child, signal.SIGKILL)
    return (lambda: role.start("--resume")), f"{role.host.name} started again"


def _traffic(
    captures: dict[str, Capture], students: list[str], addresses: dict[str, str]
) -> dict[str, Any]:
    """The summary of all captures, made by Scapy in a process of its own."""
    asked = {
        "captures": {host: str(one.path) for host, one in captures.items()},
        "students": students,
        "addresses": addresses,
    }
    done = subprocess.run(
        [sys.executable, "-m", "edgecompress.emulate.traffic"],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise EdgecompressError(f"the captures cannot be read: {last}")
    return dict(json.loads(done.stdout))


def _result(
    settings: Settings,
    net: Network,
    user: User,
    teachers: list[Role],
    students: list[Role],
    captures: dict[str, Capture],
    traffic: dict[str, Any],
    faults: list[dict[str, Any]],
    wall_s: float,
) -> dict[str, Any]:
    reasons = []
    told = {role.host.name: role.result() for role in students}
    taught = {role.host.name: role.result() for role in teachers}
    dropped = sum(one.dropped for one in captures.values())
    counted = sum(captures[role.host.name].counted() for role in students)
    if dropped:
        reasons.append(f"the kernel dropped {dropped} packets of the captures")
    for host, one in captures.items():
        if not one.whole:
            reasons.append(f"the capture at {host} ended before the lesson")
        found = traffic["bytes_at"][host]
        if abs(found / max(1, one.counted()) - 1) > RECONCILED:
            reasons.append(
                f"captured {found} bytes at {host}, the kernel counted {one.counted()}: more "
                f"than {RECONCILED:.0%} apart"
            )
    slowest = max(told.values(), key=lambda row: row["step_ms"]["p50"])  # of several students
    payload, samples = (
        sum(row["payload_bytes"] for row in told.values()),
        sum(row["samples"] for row in told.values()),
    )
    return {
        "schema": 1,
        "command": "emulate",
        "valid": not reasons,
        "reasons": reasons,
        "exchange": settings.exchange,
        "codec": None if settings.exchange == "weights" else settings.codec,
        "topology": net.graph.name,
        "graph": net.graph.as_dict(),
        "tls": not settings.insecure,
        "user": {"uid": user.uid, "name": user.name, "invoked_by_sudo": user.invoked},
        "links": [built.row() for built in net.built],
        "traffic": {**traffic, "kernel_dropped": dropped, "counter_bytes": counted},
        "distill": {
            "steps": sum(row["steps"] for row in told.values()),
            "samples": samples,
            "payload_bytes": payload,
            "wire_bytes": traffic["captured_bytes"],
            "bytes_per_sample": payload / max(1, samples),
            **{key: slowest[key] for key in ("step_ms", "wait_ms", "compute_ms", "steps_per_s")},
            **{key: slowest[key] for key in ("mutual", "staleness", "features")},
            "teacher_accuracy": next(iter(taught.values()))["accuracy"],
            "teachers": taught,
            "students": told,
        },
        "faults": faults,
        "wall_s": wall_s,
        "hardware": machine.hardware(),
        "versions": machine.versions(),
    }
