"""Faults during a lesson: links that go down, roles that are killed; and their recovery."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgecompress.emulate import shell
from edgecompress.emulate.network import EmulatedNetwork, Note, hardware_address, set_neighbour
from edgecompress.emulate.roles import Role
from edgecompress.emulate.schema import FaultRow
from edgecompress.emulate.settings import Fault

LEAST_DOWN_S = 0.5
"""Seconds between a fault and its recovery, at least."""


@dataclass(frozen=True)
class FaultRecord:
    """A fault as it happened: `at_s` is None where it did not, and `why_not` tells the reason."""

    kind: str
    at_s: float | None
    for_s: float
    why_not: str | None = None

    def row(self) -> FaultRow:
        """Its entry in `result.json`."""
        row: FaultRow = {"kind": self.kind, "at_s": self.at_s, "for_s": self.for_s}
        if self.why_not is not None:
            row["why_not"] = self.why_not
        return row


@dataclass(frozen=True)
class Recovery:
    """What ends a fault at `due_s`; `role` is the role that is down until then, if any."""

    due_s: float
    run: Callable[[], None]
    description: str
    role: Role | None = None


class Injector:
    """Injects the faults of an emulation when they are due, and recovers from them."""

    def __init__(
        self,
        faults: Sequence[Fault],
        net: EmulatedNetwork,
        teachers: Sequence[Role],
        students: Sequence[Role],
        note: Note,
    ) -> None:
        self.net = net
        self.teachers = teachers
        self.students = students
        self.note = note
        self.records: list[FaultRecord] = []
        self._pending = sorted(faults, key=lambda fault: fault.at_s)
        self._recoveries: list[Recovery] = []

    def recovering(self) -> bool:
        """True while a fault has not been recovered from."""
        return bool(self._recoveries)

    def is_down(self, role: Role) -> bool:
        """True if `role` was killed and will be started again."""
        return any(recovery.role is role for recovery in self._recoveries)

    def step(self, now: float) -> None:
        """Inject and recover what is due `now`, in seconds after the start of the lesson."""
        while self._pending and self._pending[0].at_s <= now:
            self._inject(self._pending.pop(0), now)
        for recovery in [entry for entry in self._recoveries if entry.due_s <= now]:
            self._recoveries.remove(recovery)
            recovery.run()
            self.note(f"recovered: {recovery.description}")

    def finish(self) -> list[FaultRecord]:
        """All faults, with those for which the lesson was too short."""
        missed = [
            FaultRecord(fault.kind, None, fault.for_s, "the lesson had ended")
            for fault in self._pending
        ]
        return [*self.records, *missed]

    def _inject(self, fault: Fault, now: float) -> None:
        role = (self.teachers if fault.kind == "kill-teacher" else self.students)[0]
        if fault.kind != "link-down" and not role.running():
            reason = f"{role.name} was not running"
            self.records.append(FaultRecord(fault.kind, None, fault.for_s, reason))
            return
        self.records.append(FaultRecord(fault.kind, round(now, 2), fault.for_s))
        self.note(f"fault: {fault.kind} at {now:.1f} s")
        due = now + max(fault.for_s, LEAST_DOWN_S)
        self._recoveries.append(
            self._cut_link(role, due) if fault.kind == "link-down" else self._kill(role, due)
        )

    def _kill(self, role: Role, due: float) -> Recovery:
        if role.child is not None:
            shell.stop(role.child, signal.SIGKILL)
        return Recovery(due, lambda: role.start("--resume"), f"{role.name} started again", role)

    def _cut_link(self, role: Role, due: float) -> Recovery:
        interface = self.net.access(role.name)[1]
        pid = self.net.pid(role.name)
        shell.run_inside(pid, f"ip link set {interface} down")

        def up() -> None:
            shell.run_inside(pid, f"ip link set {interface} up")
            # a link that goes down forgets its neighbours
            for name in self.net.addresses:
                if name != role.name:
                    hardware = hardware_address(self.net, name)
                    set_neighbour(self.net, role.name, name, hardware)

        return Recovery(due, up, f"link of {role.name}")
