"""The parts of an emulation's `result.json`, as types."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict


class Percentiles(TypedDict):
    """Percentiles of a duration, in milliseconds."""

    p50: float
    p90: float
    p99: float


class StepPercentiles(TypedDict):
    """Percentiles of the duration of a step, in milliseconds."""

    p50: float
    p99: float


class Configured(TypedDict):
    """The requested properties of a link; None: no limit, delay, jitter or loss."""

    bw_mbps: float | None
    delay_ms: float | None
    jitter_ms: float | None
    loss_pct: float | None


class Measurement(TypedDict):
    """What a link does: median round trip, bandwidth of frames in the slower direction, and loss
    with its 95 % interval. None: no reply, or no limit to measure.
    """

    rtt_ms: float | None
    bw_mbps: float | None
    loss_pct: float
    loss_low_pct: float
    loss_high_pct: float


class HostRow(TypedDict):
    """A host; `role` is teacher, student or empty, `cpu` a share of one core or None."""

    name: str
    role: str
    model: str | None
    cpu: float | None


class GraphLink(Configured):
    """A link of the topology between the nodes `a` and `b`."""

    a: str
    b: str


class GraphRow(TypedDict):
    """The topology."""

    name: str
    hosts: Sequence[HostRow]
    switches: Sequence[str]
    links: Sequence[GraphLink]


class LinkRow(TypedDict):
    """A link as requested and as measured."""

    a: str
    b: str
    backend: str
    configured: Configured
    measured: Measurement | None


class _FaultRow(TypedDict):
    kind: str
    at_s: float | None
    for_s: float


class FaultRow(_FaultRow, total=False):
    """A fault; `at_s` is None where it did not happen, and `why_not` is the reason."""

    why_not: str


Handshake = TypedDict(
    "Handshake", {"time": float, "from": str, "to": str, "flags": str, "options": dict[str, str]}
)
"""One segment of a TCP handshake, with the options that its sender offered."""

FlowRow = TypedDict(
    "FlowRow",
    {
        "at": str,
        "from": str,
        "to": str,
        "packets": int,
        "bytes": int,
        "payload": int,
        "retransmissions": int,
    },
)
"""One direction of a connection, as captured at the host `at`."""


class TimelineRow(TypedDict):
    """Bytes in each direction within one bin of the timeline that begins at `time_s`."""

    time_s: float
    up: int
    down: int


class TrafficSummary(TypedDict):
    """The traffic of a lesson; durations in milliseconds, sizes in bytes."""

    packets: int
    captured_bytes: int
    bytes_at: dict[str, int]
    captured: str
    other_packets: int
    goodput_mbps: float
    payload_bytes: int
    seconds: float
    retransmissions: int
    rtt_ms: Percentiles | None
    one_way_ms: dict[str, Percentiles | None]
    jitter_ms: dict[str, float | None]
    rtt_samples_ms: list[float]
    timeline: list[TimelineRow]
    flows: list[FlowRow]
    handshakes: list[Handshake]


class _RoleResult(TypedDict):
    model: str
    params: int
    accuracy: float


class RoleResult(_RoleResult, total=False):
    """What is read of a role's own `result.json`; all its other keys are passed on. A network that
    was pruned has `params_before`, and `floors_reached` where that missed its amount; `ci95` is the
    95 % interval of the accuracy on `n` samples.
    """

    params_before: int
    floors_reached: str
    n: int
    ci95: list[float]


class EpochRow(TypedDict):
    """Where a student stood after an epoch."""

    time_s: float
    validation_accuracy: float
    wire_bytes: int


class StudentResult(RoleResult):
    """What is read of a student's own `result.json`; all its other keys are passed on."""

    steps: int
    samples: int
    payload_bytes: int
    steps_per_s: float
    step_ms: StepPercentiles
    wait_ms: StepPercentiles
    compute_ms: StepPercentiles
    mutual: bool
    staleness: int | None
    features: str | None
    timeline: list[EpochRow]


class DistillSummary(TypedDict):
    """The lesson: sums over all students, and the step durations of the slowest one."""

    steps: int
    samples: int
    payload_bytes: int
    wire_bytes: int
    bytes_per_sample: float
    step_ms: StepPercentiles
    wait_ms: StepPercentiles
    compute_ms: StepPercentiles
    steps_per_s: float
    mutual: bool
    staleness: int | None
    features: str | None
    teacher_accuracy: float
    teachers: dict[str, RoleResult]
    students: dict[str, StudentResult]


class TrafficResult(TrafficSummary):
    """The traffic, with the kernel's own counters."""

    kernel_dropped: int
    counter_bytes: int


class UserRow(TypedDict):
    """The user who ran the roles."""

    uid: int
    name: str
    invoked_by_sudo: bool


class _EmulationResult(TypedDict):
    schema: int
    command: str
    valid: bool
    reasons: list[str]
    exchange: str
    codec: str | None
    topology: str
    graph: GraphRow
    tls: bool
    user: UserRow
    links: list[LinkRow]
    traffic: TrafficResult
    distill: DistillSummary
    faults: list[FaultRow]
    wall_s: float
    hardware: dict[str, object]
    versions: dict[str, str]


class EmulationResult(_EmulationResult, total=False):
    """The content of `result.json`; `regressions` is there where something is worse than the
    baseline.
    """

    regressions: list[str]
