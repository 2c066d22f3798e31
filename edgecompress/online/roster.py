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
from edgecompress.online.pupil import Pupil
from edgecompress.online.session import BrokenError, Plan, label_of
from edgecompress.online.shelf import Shelf, newest_common

BEAT = 10.0
"""Seconds after which a student that waits is told that the teacher is still there."""


class Roster:
    """The students of one lesson, `students` in number. Kept states are below `folder`; `own` says
    what else they depend on.

    `training` is whether the teacher has states of its own, which `shelf` keeps. All changes are
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
        self.shelf, self.pupils, self.changed, self.generation = (
            Shelf(folder),
            dict[str, Pupil](),
            threading.Condition(),
            0,
        )
        self._claimed, self._failure, self.resume = False, "", resume
        if resume:
            for name, values in (self.shelf.noted("done") or {}).items():
                pupil = self._place(name, Plan.parsed(values["plan"]))
                pupil.done, pupil.heard_the_end = values["said"], True
        else:
            self._forget()

    def meet(self, name: str, instance: str, plan: Plan, have: list[int]) -> Pupil:
        """A student says hello, for the first time or again, and which steps it holds.

        Raises `UsageError` when there is no place for it, `BrokenError` when one of its name is
        connected or the lesson has failed.
        """
        with self.changed:
            if self._failure:
                raise BrokenError(self._failure)
            pupil = self.pupils.get(name)
            if pupil is None:
                pupil = self._enrolled(name, plan)
            if pupil.plan != plan:
                raise UsageError(
                    f"student '{name}' came back with another plan: start both ends again"
                )
            if pupil.present and pupil.instance != instance:
                raise BrokenError(
                    f"a student called '{name}' is here already: give each a --name of its own"
                )
            held = {0, *have}
            held &= {0, *self.shelf.steps()} if self.training else held
            held &= {0, *pupil.shelf.steps()} if plan.codec == "soft" else held
            pupil.have, pupil.wrong, pupil.done, pupil.instance, pupil.heard_the_end = (
                sorted(held),
                None,
                None,
                instance,
                False,
            )
            pupil.meetings, pupil.present, pupil.connected = pupil.meetings + 1, True, False
            self.changed.notify_all()
        return pupil

    def begin(self, pupil: Pupil, meeting: int) -> Iterator[None]:
        """Go back to the newest step that all ends hold: student and teacher; in mutual learning
        all students, once they are here.

        Yields every `BEAT` seconds until then. Raises `BrokenError` when the student has gone.
        """
        begun = time.monotonic()
        while True:
            with self.changed:
                if pupil.wrong is not None or pupil.meetings != meeting or not pupil.present:
                    raise pupil.wrong or BrokenError("the student has gone")
                together = list(self.pupils.values()) if pupil.plan.mutual else [pupil]
                complete = len(self.pupils) == self.students or not pupil.plan.mutual
                if complete and all(one.present and one.wrong is None for one in together):
                    pupil.go_back(newest_common(*(one.have for one in together)))
                    pupil.connected = True
                    self.generation += 1
                    self.changed.notify_all()
                    return
                self.changed.wait(0.2)
            if time.monotonic() - begun > BEAT:
                yield
                begun = time.monotonic()

    def _enrolled(self, name: str, plan: Plan) -> Pupil:
        """A student of this lesson that was not here before; its name may be anything, and names no
        path.
        """
        if not self._claimed:
            label = label_of(shared(plan), self.own)
            self.shelf, self._claimed = plan.shelf(self.folder), True
            if self.shelf.label() not in (None, label):
                if self.resume:
                    self._claimed = False
                    raise UsageError(
                        f"this teacher goes on with a lesson of other students: '{name}' is "
                        "none of it; give its --run and options"
                    )
                self._forget()
            self.shelf.claim(label)
        if len(self.pupils) >= self.students:
            raise UsageError(
                f"this lesson is for {self.students} student(s), and all are here: start the "
                "teacher with --students"
            )
        others = list(self.pupils.values())
        if self.training and others and shared(others[0].plan) != shared(plan):
            raise UsageError(
                f"student '{name}' has another plan than the others of a teacher that "
                "trains: give all the same options"
            )
        return self._place(name, plan)

    def _place(self, name: str, plan: Plan) -> Pupil:
        folder = (
            self.folder / hashlib.sha256(name.encode()).hexdigest()[:16]
            if self.folder is not None
            else None
        )
        shelf = plan.shelf(folder if plan.codec == "soft" else None)
        shelf.claim(label_of(plan, self.own))
        blank = Codec(plan.codec, plan.samples, plan.classes, plan.top_k)
        self.pupils[name] = Pupil(plan, shelf, blank, blank)
        return self.pupils[name]

    def _forget(self) -> None:
        """Nothing that an earlier lesson left counts."""
        self.shelf.clear()
        for folder in self.folder.glob("*/") if self.folder is not None else []:
            Shelf(folder).clear()
        self.pupils.clear()

    def greet(self, pupil: Pupil) -> None:
        """A student has its place for good: nothing about it was refused."""
        with self.changed:
            pupil.greeted = True
            self.changed.notify_all()

    def complete(self) -> bool:
        """Are all students of the lesson known?"""
        known = [
            pupil for pupil in list(self.pupils.values()) if pupil.greeted or pupil.done is not None
        ]
        return len(known) == self.students

    def dismiss(self, name: str, pupil: Pupil) -> None:
        """A student that was refused at its first hello has no place."""
        with self.changed:
            if pupil.meetings == 1 and self.pupils.get(name) is pupil:
                del self.pupils[name]
            self.changed.notify_all()

    def leave(self, pupil: Pupil | None, meeting: int) -> None:
        """The stream of a student's `meeting` is over. In mutual learning all others then go back
        with it.
        """
        with self.changed:
            if pupil is not None and pupil.meetings == meeting and pupil.present:
                pupil.present = pupil.connected = False
                if pupil.plan.mutual and pupil.done is None and pupil.wrong is None:
                    for other in self.pupils.values():
                        if other is not pupil and other.present:
                            other.wrong, other.done = BrokenError("another student broke off"), None
            self.changed.notify_all()

    def fail(self, reason: str) -> None:
        """The lesson cannot go on: its students hear why, and none is taken any more."""
        with self.changed:
            self._failure = f"the teacher gave up: {reason}"
            for pupil in self.pupils.values():
                if pupil.present and not pupil.heard_the_end:
                    pupil.wrong = BrokenError(self._failure)
            self.changed.notify_all()

    def end(self, pupil: Pupil) -> None:
        """A student that has ended its lesson is told so now, and will not come back: that is kept,
        too.
        """
        with self.changed:
            pupil.heard_the_end = True
            done = {
                name: {"plan": one.plan.as_dict(), "said": one.done}
                for name, one in self.pupils.items()
                if one.heard_the_end
            }
            self.shelf.note("done", done)
            self.changed.notify_all()

    def there(self, pupil: Pupil, meeting: int) -> bool:
        """Does this stream of the student still count?"""
        return pupil.connected and pupil.meetings == meeting and pupil.wrong is None

    def check_there(self, pupil: Pupil, meeting: int) -> None:
        """Raises what is wrong with a student's stream, or `BrokenError` when it has gone."""
        if not self.there(pupil, meeting):
            raise pupil.wrong or BrokenError("the student has gone")

    def active(self) -> list[Pupil]:
        """The students that have not ended; in mutual learning, where each is needed to the end,
        those that were not told of it.
        """
        known = list(self.pupils.values())
        return [
            pupil
            for pupil in known
            if pupil.done is None or (pupil.plan.mutual and not pupil.heard_the_end)
        ]

    def all_here(self) -> bool:
        """Is everyone connected who is still needed: who has not ended, or learns mutually and was
        not told that this is the end?
        """
        known = list(self.pupils.values())
        return all(
            one.connected or one.heard_the_end or (one.done is not None and not one.plan.mutual)
            for one in known
        )

    def all_done(self) -> bool:
        """Has everyone ended?"""
        return all(pupil.done is not None for pupil in list(self.pupils.values()))

    def check_whole(self, step: int, generation: int) -> None:
        """Raises `BrokenError` when somebody has left, or come back, since a training of
        `generation` began.
        """
        if self.generation != generation or not self.all_here():
            raise BrokenError(f"a student broke off before step {step}")

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
