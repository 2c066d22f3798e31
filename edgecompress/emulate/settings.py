"""Settings of one emulation, and the faults that it injects."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgecompress.errors import UsageError
from edgecompress.units import parse_duration

_TIMED = re.compile(r"(kill-student|kill-teacher)@([^:]+)|(link-down)@([^:]+):(.+)")
_LOSS = re.compile(r"loss=(\d+(?:\.\d+)?)%")


@dataclass(frozen=True)
class Fault:
    """A fault injected `at_s` seconds after the start of the lesson; a link that goes down comes
    back after `for_s` seconds.
    """

    kind: str
    at_s: float
    for_s: float = 0.0


@dataclass(frozen=True)
class Settings:
    """Settings of an emulation.

    `link` are properties that override those of every link. `options` are passed to both roles,
    `student_options` and `teacher_options` to one.
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
    link: Mapping[str, object] = field(default_factory=dict)
    faults: tuple[Fault, ...] = ()
    options: tuple[str, ...] = ()
    student_options: tuple[str, ...] = ()
    teacher_options: tuple[str, ...] = ()


def parse_fault(text: str) -> tuple[Fault | None, dict[str, float]]:
    """The fault in `link-down@10s:5s`, `kill-student@20s` or `kill-teacher@20s`, or the link
    property in `loss=5%`.

    Raises `UsageError` for any other text.
    """
    if loss := _LOSS.fullmatch(text):
        return None, {"loss": float(loss[1])}
    match = _TIMED.fullmatch(text)
    if match is None:
        raise UsageError(
            f"fault '{text}' is not known: write link-down@10s:5s, kill-student@20s, "
            "kill-teacher@20s or loss=5%"
        )
    killed, killed_at, down, down_at, down_for = match.groups()
    if down:
        return Fault(down, parse_duration(down_at), parse_duration(down_for)), {}
    return Fault(killed, parse_duration(killed_at)), {}
