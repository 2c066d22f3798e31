"""The students of a lesson: who takes part, from which step each continues, and who is done."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypedDict, cast

from edgecompress.errors import EdgecompressError, UsageError
from edgecompress.online.plan import Plan, label_of
from edgecompress.online.session import StudentSession
from edgecompress.online.store import StateStore, newest_common
from edgecompress.online.wire import HEARTBEAT_SECONDS, ConnectionLostError, Metadata

POLL_SECONDS = 0.2
"""Longest wait for a change before conditions and deadlines are checked again."""


class DoneNote(TypedDict):
    """A student that was dismissed: its plan, and the last metadata for it."""

    plan: dict[str, object]
    metadata: Metadata | None


class StudentRegistry:
    """The sessions of one lesson for `expected` students. States are saved below `folder`; `own`
    says what else they depend on, and with `resume` those of an earlier process count.

    `training` is whether the teacher has states of its own, which are in `store`. All changes
    happen under `changed`, which is notified. `generation` counts how often a student has begun: a
    training that began under an earlier generation must rewind.
    """

    def __init__(
        self,
        expected: int,
        folder: Path | None,
        own: Mapping[str, object],
        *,
        training: bool,
        resume: bool,
    ) -> None:
        self.expected = expected
        self.folder = folder
        self.own = own
        self.training = training
        self.resume = resume
        self.store = StateStore(folder)
        self.sessions = dict[str, StudentSession]()
        self.changed = threading.Condition()
        self.generation = 0
        self._claimed = False
        self._failure = ""
        if resume:
            self._restore_done()
        else:
            self._clear()

    # connections

    def join(self, name: str, instance: str, plan: Plan, saved_steps: list[int]) -> StudentSession:
        """Open a connection of student `name`, which has saved the states of `saved_steps`.

        Raises `UsageError` when the lesson has no place for it, `ConnectionLostError` when a
        student of this name is connected or the lesson has failed.
        """
        with self.changed:
            if self._failure:
                raise ConnectionLostError(self._failure)
            session = self.sessions.get(name)
            if session is None:
                session = self._enroll(name, plan)
            if session.plan != plan:
                raise UsageError(
                    f"student '{name}' came back with another plan: start both ends again"
                )
            if session.present and session.instance != instance:
                raise ConnectionLostError(
                    f"a student called '{name}' is here already: give each a --name of its own"
                )
            session.open(instance, sorted(self._common_steps(session, saved_steps)))
            self.changed.notify_all()
        return session

    def _common_steps(self, session: StudentSession, saved_steps: list[int]) -> set[int]:
        """The steps among `saved_steps` that the teacher can return to as well."""
        steps = {0, *saved_steps}
        if self.training:
            steps &= {0, *self.store.steps()}
        if session.plan.codec == "soft":
            steps &= {0, *session.store.steps()}
        return steps

    def begin(self, session: StudentSession, connection: int) -> Iterator[None]:
        """Return to the newest step that all ends have saved: student and teacher, and in mutual
        learning all students, once they are connected.

        Yields every `HEARTBEAT_SECONDS` until then. Raises `ConnectionLostError` when the student
        has left.
        """
        begun = time.monotonic()
        while not self._try_begin(session, connection):
            if time.monotonic() - begun > HEARTBEAT_SECONDS:
                yield
                begun = time.monotonic()

    def _try_begin(self, session: StudentSession, connection: int) -> bool:
        """Begin if everyone who is needed is here; else wait a little. Did the session begin?"""
        with self.changed:
            current = session.connections == connection and session.present
            if session.error is not None or not current:
                raise session.error or ConnectionLostError("the student has left")

            together = list(self.sessions.values()) if session.plan.mutual else [session]
            complete = len(self.sessions) == self.expected or not session.plan.mutual
            if complete and all(one.present and one.error is None for one in together):
                session.rewind(newest_common(*(one.saved_steps for one in together)))
                session.connected = True
                self.generation += 1
                self.changed.notify_all()
                return True
            self.changed.wait(POLL_SECONDS)
        return False

    def confirm(self, session: StudentSession) -> None:
        """The student keeps its place: nothing about it was refused."""
        with self.changed:
            session.confirmed = True
            self.changed.notify_all()

    def remove(self, name: str, session: StudentSession) -> None:
        """A student that was refused at its first hello has no place."""
        with self.changed:
            if session.connections == 1 and self.sessions.get(name) is session:
                del self.sessions[name]
            self.changed.notify_all()

    def leave(self, session: StudentSession | None, connection: int) -> None:
        """The student's `connection` is over. In mutual learning all others then rewind with it."""
        with self.changed:
            if session is not None and session.connections == connection and session.present:
                session.present = False
                session.connected = False
                if session.plan.mutual and session.done is None and session.error is None:
                    self._break_off_others(session)
            self.changed.notify_all()

    def _break_off_others(self, session: StudentSession) -> None:
        for other in self.sessions.values():
            if other is not session and other.present:
                other.error = ConnectionLostError("another student lost its connection")
                other.done = None

    def fail(self, reason: str) -> None:
        """The lesson has failed: its students receive the reason, and no more are accepted."""
        with self.changed:
            self._failure = f"the teacher gave up: {reason}"
            for session in self.sessions.values():
                if session.present and not session.dismissed:
                    session.error = ConnectionLostError(self._failure)
            self.changed.notify_all()

    def dismiss(self, session: StudentSession) -> None:
        """The student knows that the lesson is over, and will not come back; this is saved, too."""
        with self.changed:
            session.dismissed = True
            self.store.write_note("done", self._done_note())
            self.changed.notify_all()

    # what the streams and the training ask

    def is_current(self, session: StudentSession, connection: int) -> bool:
        """Is this connection of the student in use, and without error?"""
        return session.connected and session.connections == connection and session.error is None

    def check(self, session: StudentSession, connection: int) -> None:
        """Raises the error of a student's connection, or `ConnectionLostError` when it is over."""
        if not self.is_current(session, connection):
            raise session.error or ConnectionLostError("the student has left")

    def complete(self) -> bool:
        """Are all students of the lesson known?"""
        known = [one for one in self._all() if one.confirmed or one.done is not None]
        return len(known) == self.expected

    def active(self) -> list[StudentSession]:
        """The students that are not done; in mutual learning, where each is needed to the end,
        those that are not dismissed.
        """
        return [
            one
            for one in self._all()
            if one.done is None or (one.plan.mutual and not one.dismissed)
        ]

    def all_connected(self) -> bool:
        """Is everyone connected who is still needed?"""
        return all(
            one.connected or one.dismissed or (one.done is not None and not one.plan.mutual)
            for one in self._all()
        )

    def all_done(self) -> bool:
        """Is everyone done?"""
        return all(one.done is not None for one in self._all())

    def check_generation(self, step: int, generation: int) -> None:
        """Raises `ConnectionLostError` when a student has left, or come back, since a training of
        `generation` began.
        """
        if self.generation != generation or not self.all_connected():
            raise ConnectionLostError(f"a student lost its connection before step {step}")

    def wait_until(
        self,
        condition: Callable[[], bool],
        timeout: float | None,
        text: str,
        while_away: bool = False,
    ) -> None:
        """Wait for `condition`. With `while_away` the time counts only while a student that is
        needed is not connected.

        Raises `EdgecompressError` with `text` after `timeout` seconds.
        """
        deadline = time.monotonic() + timeout if timeout is not None else None
        with self.changed:
            while not condition():
                if timeout is not None and while_away and self.all_connected():
                    deadline = time.monotonic() + timeout
                if deadline is not None and time.monotonic() > deadline:
                    raise EdgecompressError(
                        f"{text} within {timeout:g} s: look at the student's own messages"
                    )
                self.changed.wait(POLL_SECONDS)

    def _all(self) -> list[StudentSession]:
        """A copy, since another thread may add one."""
        return list(self.sessions.values())

    # places

    def _enroll(self, name: str, plan: Plan) -> StudentSession:
        """The session of a new student. Raises `UsageError` when there is no place for it."""
        if not self._claimed:
            self._claim(name, plan)
        if len(self.sessions) >= self.expected:
            raise UsageError(
                f"this lesson is for {self.expected} student(s), and all are here: start the "
                "teacher with --students"
            )
        others = list(self.sessions.values())
        if self.training and others and shared(others[0].plan) != shared(plan):
            raise UsageError(
                f"student '{name}' has another plan than the others of a teacher that "
                "trains: give all the same options"
            )
        return self._add(name, plan)

    def _claim(self, name: str, plan: Plan) -> None:
        """Take the teacher's saved states for the lesson of `plan`; those of another lesson are
        deleted.

        Raises `UsageError` for states to resume from that belong to another lesson.
        """
        label = label_of(shared(plan), self.own)
        self.store = plan.store(self.folder)
        if self.store.label() not in (None, label):
            if self.resume:
                raise UsageError(
                    f"this teacher resumes a lesson with other students: '{name}' does not "
                    "belong to it; give its --run and options"
                )
            self._clear()
        self.store.claim(label)
        self._claimed = True

    def _add(self, name: str, plan: Plan) -> StudentSession:
        """A new session; the student's name may be any text, so the folder is named by its hash."""
        folder = (
            self.folder / hashlib.sha256(name.encode()).hexdigest()[:16]
            if self.folder is not None
            else None
        )
        store = plan.store(folder if plan.codec == "soft" else None)
        store.claim(label_of(plan, self.own))
        self.sessions[name] = StudentSession.new(plan, store)
        return self.sessions[name]

    def _clear(self) -> None:
        """Delete the states of an earlier lesson."""
        self.store.clear()
        for folder in self.folder.glob("*/") if self.folder is not None else []:
            StateStore(folder).clear()
        self.sessions.clear()

    def _done_note(self) -> dict[str, DoneNote]:
        return {
            name: {"plan": one.plan.as_dict(), "metadata": one.done}
            for name, one in self.sessions.items()
            if one.dismissed
        }

    def _restore_done(self) -> None:
        """The students that an earlier process has dismissed are done."""
        done = cast("dict[str, DoneNote]", self.store.read_note("done") or {})
        for name, values in done.items():
            session = self._add(name, Plan.parsed(values["plan"]))
            session.done = values["metadata"]
            session.dismissed = True


def shared(plan: Plan) -> Plan:
    """What all students of a teacher that trains must have in common. How their answers are
    encoded, and the name of the run, is their own.
    """
    return replace(plan, codec="fp32", top_k=1, run="", features="", maps=[])
