"""Who is in a lesson, from which step each student goes on, and who has ended it."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgecompress.errors import EdgecompressError, UsageError
from edgecompress.online.codec import Codec
from edgecompress.online.plan import ConnectionLostError, Plan, label_of
from edgecompress.online.session import StudentSession
from edgecompress.online.store import StateStore, newest_common

BEAT = 10.0
"""Seconds after which a student that waits is told that the teacher is still there."""


class StudentRegistry:
    """The students of one lesson, `students` in number. Kept states are below `folder`; `own` says
    what else they depend on.

    `training` is whether the teacher has states of its own, which `store` keeps. All changes are
    made under `changed`, which is notified. `generation` counts the beginnings: a training that
    began before one must go back.
    """

    def __init__(
        self,
        students: int,
        folder: Path | None,
        own: Mapping[str, Any],
        *,
        training: bool,
        resume: bool,
    ) -> None:
        self.students, self.folder, self.own, self.training = students, folder, own, training
        self.store, self.sessions, self.changed, self.generation = (
            StateStore(folder),
            dict[str, StudentSession](),
            threading.Condition(),
            0,
        )
        self._claimed, self._failure, self.resume = False, "", resume
        if resume:
            for name, values in (self.store.noted("done") or {}).items():
                session = self._place(name, Plan.parsed(values["plan"]))
                session.done, session.heard_the_end = values["said"], True
        else:
            self._forget()

    def meet(self, name: str, instance: str, plan: Plan, have: list[int]) -> StudentSession:
        """A student says hello, for the first time or again, and which steps it holds.

        Raises `UsageError` when there is no place for it, `ConnectionLostError` when one of its
        name is connected or the lesson has failed.
        """
        with self.changed:
            if self._failure:
                raise ConnectionLostError(self._failure)
            session = self.sessions.get(name)
            if session is None:
                session = self._enrolled(name, plan)
            if session.plan != plan:
                raise UsageError(
                    f"student '{name}' came back with another plan: start both ends again"
                )
            if session.present and session.instance != instance:
                raise ConnectionLostError(
                    f"a student called '{name}' is here already: give each a --name of its own"
                )
            held = {0, *have}
            held &= {0, *self.store.steps()} if self.training else held
            held &= {0, *session.store.steps()} if plan.codec == "soft" else held
            session.have, session.wrong, session.done, session.instance, session.heard_the_end = (
                sorted(held),
                None,
                None,
                instance,
                False,
            )
            session.meetings, session.present, session.connected = session.meetings + 1, True, False
            self.changed.notify_all()
        return session

    def begin(self, session: StudentSession, meeting: int) -> Iterator[None]:
        """Go back to the newest step that all ends hold: student and teacher; in mutual learning
        all students, once they are here.

        Yields every `BEAT` seconds until then. Raises `ConnectionLostError` when the student has
        gone.
        """
        begun = time.monotonic()
        while True:
            with self.changed:
                if session.wrong is not None or session.meetings != meeting or not session.present:
                    raise session.wrong or ConnectionLostError("the student has gone")
                together = list(self.sessions.values()) if session.plan.mutual else [session]
                complete = len(self.sessions) == self.students or not session.plan.mutual
                if complete and all(one.present and one.wrong is None for one in together):
                    session.go_back(newest_common(*(one.have for one in together)))
                    session.connected = True
                    self.generation += 1
                    self.changed.notify_all()
                    return
                self.changed.wait(0.2)
            if time.monotonic() - begun > BEAT:
                yield
                begun = time.monotonic()

    def _enrolled(self, name: str, plan: Plan) -> StudentSession:
        """A student of this lesson that was not here before; its name may be anything, and names no
        path.
        """
        if not self._claimed:
            label = label_of(shared(plan), self.own)
            self.store, self._claimed = plan.store(self.folder), True
            if self.store.label() not in (None, label):
                if self.resume:
                    self._claimed = False
                    raise UsageError(
                        f"this teacher goes on with a lesson of other students: '{name}' is "
                        "none of it; give its --run and options"
                    )
                self._forget()
            self.store.claim(label)
        if len(self.sessions) >= self.students:
            raise UsageError(
                f"this lesson is for {self.students} student(s), and all are here: start the "
                "teacher with --students"
            )
        others = list(self.sessions.values())
        if self.training and others and shared(others[0].plan) != shared(plan):
            raise UsageError(
                f"student '{name}' has another plan than the others of a teacher that "
                "trains: give all the same options"
            )
        return self._place(name, plan)

    def _place(self, name: str, plan: Plan) -> StudentSession:
        folder = (
            self.folder / hashlib.sha256(name.encode()).hexdigest()[:16]
            if self.folder is not None
            else None
        )
        store = plan.store(folder if plan.codec == "soft" else None)
        store.claim(label_of(plan, self.own))
        blank = Codec(plan.codec, plan.samples, plan.classes, plan.top_k)
        self.sessions[name] = StudentSession(plan, store, blank, blank)
        return self.sessions[name]

    def _forget(self) -> None:
        """Nothing that an earlier lesson left counts."""
        self.store.clear()
        for folder in self.folder.glob("*/") if self.folder is not None else []:
            StateStore(folder).clear()
        self.sessions.clear()

    def greet(self, session: StudentSession) -> None:
        """A student has its place for good: nothing about it was refused."""
        with self.changed:
            session.greeted = True
            self.changed.notify_all()

    def complete(self) -> bool:
        """Are all students of the lesson known?"""
        known = [
            session
            for session in list(self.sessions.values())
            if session.greeted or session.done is not None
        ]
        return len(known) == self.students

    def dismiss(self, name: str, session: StudentSession) -> None:
        """A student that was refused at its first hello has no place."""
        with self.changed:
            if session.meetings == 1 and self.sessions.get(name) is session:
                del self.sessions[name]
            self.changed.notify_all()

    def leave(self, session: StudentSession | None, meeting: int) -> None:
        """The stream of a student's `meeting` is over. In mutual learning all others then go back
        with it.
        """
        with self.changed:
            if session is not None and session.meetings == meeting and session.present:
                session.present = session.connected = False
                if session.plan.mutual and session.done is None and session.wrong is None:
                    for other in self.sessions.values():
                        if other is not session and other.present:
                            other.wrong, other.done = (
                                ConnectionLostError("another student broke off"),
                                None,
                            )
            self.changed.notify_all()

    def fail(self, reason: str) -> None:
        """The lesson cannot go on: its students hear why, and none is taken any more."""
        with self.changed:
            self._failure = f"the teacher gave up: {reason}"
            for session in self.sessions.values():
                if session.present and not session.heard_the_end:
                    session.wrong = ConnectionLostError(self._failure)
            self.changed.notify_all()

    def end(self, session: StudentSession) -> None:
        """A student that has ended its lesson is told so now, and will not come back: that is kept,
        too.
        """
        with self.changed:
            session.heard_the_end = True
            done = {
                name: {"plan": one.plan.as_dict(), "said": one.done}
                for name, one in self.sessions.items()
                if one.heard_the_end
            }
            self.store.note("done", done)
            self.changed.notify_all()

    def there(self, session: StudentSession, meeting: int) -> bool:
        """Does this stream of the student still count?"""
        return session.connected and session.meetings == meeting and session.wrong is None

    def check_there(self, session: StudentSession, meeting: int) -> None:
        """Raises the error of a student's stream, or `ConnectionLostError` when it has gone."""
        if not self.there(session, meeting):
            raise session.wrong or ConnectionLostError("the student has gone")

    def active(self) -> list[StudentSession]:
        """The students that have not ended; in mutual learning, where each is needed to the end,
        those that were not told of it.
        """
        known = list(self.sessions.values())
        return [
            session
            for session in known
            if session.done is None or (session.plan.mutual and not session.heard_the_end)
        ]

    def all_here(self) -> bool:
        """Is everyone connected who is still needed: who has not ended, or learns mutually and was
        not told that this is the end?
        """
        known = list(self.sessions.values())
        return all(
            one.connected or one.heard_the_end or (one.done is not None and not one.plan.mutual)
            for one in known
        )

    def all_done(self) -> bool:
        """Has everyone ended?"""
        return all(session.done is not None for session in list(self.sessions.values()))

    def check_whole(self, step: int, generation: int) -> None:
        """Raises `ConnectionLostError` when somebody has left, or come back, since a training of
        `generation` began.
        """
        if self.generation != generation or not self.all_here():
            raise ConnectionLostError(f"a student broke off before step {step}")

    def until(
        self, happened: Callable[[], bool], timeout: float | None, text: str, away: bool = False
    ) -> None:
        """Wait. With `away` the time counts only while a student that is not done is not connected.

        Raises `EdgecompressError` with `text` after `timeout` seconds.
        """
        left = time.monotonic() + timeout if timeout is not None else None
        with self.changed:
            while not happened():
                if away and self.all_here() and timeout is not None:
                    left = time.monotonic() + timeout
                if left is not None and time.monotonic() > left:
                    raise EdgecompressError(
                        f"{text} within {timeout:g} s: look at the student's own messages"
                    )
                self.changed.wait(0.2)

    def until_back(self, generation: int, timeout: float) -> None:
        """Wait until a student has come back since `generation`."""
        self.until(lambda: self.generation != generation, timeout, "the student did not come back")


def shared(plan: Plan) -> Plan:
    """What all students of a teacher that trains have in common; how their answers are packed, and
    what they call the run, is their own.
    """
    return replace(plan, codec="fp32", top_k=1, run="", features="", maps=[])
