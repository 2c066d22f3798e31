"""The result of an emulation, assembled and checked: is everything captured that the kernel saw?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgecompress.emulate.capture import Capture
from edgecompress.emulate.faults import FaultRecord
from edgecompress.emulate.network import EmulatedNetwork
from edgecompress.emulate.schema import (
    DistillSummary,
    EmulationResult,
    RoleResult,
    StudentResult,
    TrafficSummary,
)
from edgecompress.emulate.settings import Settings
from edgecompress.emulate.user import User
from edgecompress.measure import machine

RECONCILED = 0.01
"""Share by which captured bytes and the kernel's counters may differ."""


@dataclass(frozen=True)
class Outcome:
    """What an emulation left: the results of its roles by host, captures, traffic, and faults."""

    settings: Settings
    net: EmulatedNetwork
    user: User
    teachers: Mapping[str, RoleResult]
    students: Mapping[str, StudentResult]
    captures: Mapping[str, Capture]
    traffic: TrafficSummary
    faults: Sequence[FaultRecord]
    wall_s: float

    def result(self) -> EmulationResult:
        """The content of `result.json`."""
        reasons = self.reasons()
        exchange = self.settings.exchange
        return {
            "schema": 1,
            "command": "emulate",
            "valid": not reasons,
            "reasons": reasons,
            "exchange": exchange,
            "codec": None if exchange == "weights" else self.settings.codec,
            "topology": self.net.graph.name,
            "graph": self.net.graph.as_dict(),
            "tls": not self.settings.insecure,
            "user": {
                "uid": self.user.uid,
                "name": self.user.name,
                "invoked_by_sudo": self.user.invoked,
            },
            "links": [built.row() for built in self.net.built],
            "traffic": {
                **self.traffic,
                "kernel_dropped": self.dropped(),
                "counter_bytes": sum(self.captures[host].counted() for host in self.students),
            },
            "distill": self.distill(),
            "faults": [record.row() for record in self.faults],
            "wall_s": self.wall_s,
            "hardware": machine.hardware(),
            "versions": machine.versions(),
        }

    def dropped(self) -> int:
        """Packets that the kernel dropped before a capture got them."""
        return sum(done.dropped for done in self.captures.values())

    def reasons(self) -> list[str]:
        """Why the captures are incomplete, one line each; empty if they are complete."""
        reasons = []
        if dropped := self.dropped():
            reasons.append(f"the kernel dropped {dropped} packets of the captures")
        for host, done in self.captures.items():
            if not done.complete:
                reasons.append(f"the capture at {host} ended before the lesson")
            captured = self.traffic["bytes_at"][host]
            counted = done.counted()
            if abs(captured / max(1, counted) - 1) > RECONCILED:
                reasons.append(
                    f"captured {captured} bytes at {host}, the kernel counted {counted}: more "
                    f"than {RECONCILED:.0%} apart"
                )
        return reasons

    def distill(self) -> DistillSummary:
        """The lesson over all students; durations are those of the slowest one."""
        students = self.students.values()
        slowest = max(students, key=lambda row: row["step_ms"]["p50"])
        payload = sum(row["payload_bytes"] for row in students)
        samples = sum(row["samples"] for row in students)
        return {
            "steps": sum(row["steps"] for row in students),
            "samples": samples,
            "payload_bytes": payload,
            "wire_bytes": self.traffic["captured_bytes"],
            "bytes_per_sample": payload / max(1, samples),
            "step_ms": slowest["step_ms"],
            "wait_ms": slowest["wait_ms"],
            "compute_ms": slowest["compute_ms"],
            "steps_per_s": slowest["steps_per_s"],
            "mutual": slowest["mutual"],
            "staleness": slowest["staleness"],
            "features": slowest["features"],
            "teacher_accuracy": next(iter(self.teachers.values()))["accuracy"],
            "teachers": dict(self.teachers),
            "students": dict(self.students),
        }
