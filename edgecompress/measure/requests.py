"""Parts of results, and what the measuring child processes read from stdin and print, as JSON."""

from __future__ import annotations

from dataclasses import dataclass

from typing_extensions import NotRequired, TypedDict


@dataclass(frozen=True)
class TimingRequest:
    """Time one or two `models` (paths) in at most `blocks`, whose runs of a model take about
    `block_ms`, for about `limit_s` seconds.

    `swap` (0 or 1) reverses their order; `shapes` are complete shapes of inputs. `batch_size` None
    takes the files' own, else 1.
    """

    models: tuple[str, ...]
    threads: int | None
    provider: str
    batch_size: int | None
    blocks: int
    block_ms: float
    seed: int
    swap: int
    shapes: dict[str, list[int]] | None = None
    limit_s: float = 1e9


class Timings(TypedDict):
    """Milliseconds: of single runs (models, runs), and of the fastest run in each block (blocks,
    models).
    """

    samples_ms: list[list[float]]
    blocks_ms: list[list[float]]
    runs: int
    threads: int
    reference_ms: float
    input: str
    batch: int


@dataclass(frozen=True)
class ProfileRequest:
    """Profile the file `model` at several batch sizes, which take about `time_s` together."""

    model: str
    threads: int | None
    provider: str
    batches: tuple[int | None, ...]
    seed: int
    shapes: dict[str, list[int]] | None = None
    time_s: float | None = None


@dataclass(frozen=True)
class TrialRequest:
    """Load the file `model`, a path seen from `folder`; `runs`: and run it once on random
    inputs.
    """

    model: str
    folder: str
    provider: str = "CPUExecutionProvider"
    runs: bool = True


class TrialAnswer(TypedDict):
    """What the processor does to the results of a file that loads, if anything."""

    warning: str | None


class FileRow(TypedDict):
    """A file, its bytes, and the percentiles of its single runs."""

    file: str
    bytes: int
    sha256: str
    p50_ms: float
    p90_ms: float
    p99_ms: float


class Conditions(TypedDict):
    """The conditions of a measurement."""

    batch: int
    threads: int
    provider: str
    input: str
    reference_ms: float
    hardware: dict[str, object]
    versions: dict[str, str]


class Gate(TypedDict):
    """A check beside latency, as the formats of CI show it."""

    name: str
    passed: bool
    text: str
    verdict: NotRequired[str]
    """`pass`, `fail` or `inconclusive`, where there is an interval."""


class Failure(TypedDict):
    """An error of ours, as a child process reports it."""

    error: str
    exit_code: int


class BatchRow(TypedDict):
    """Latency and throughput at one batch size."""

    batch: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    samples_per_s: float


class Profile(TypedDict):
    """Cold start, memory, latency by batch, and the share of what the machine can do at most."""

    load_ms: float
    first_run_ms: float
    cold_start_ms: float
    peak_rss_bytes: int
    rss_before_load_bytes: int
    batches: list[BatchRow]
    macs: int | None
    gmacs_per_s: float | None
    ceiling_gmacs_per_s: dict[str, float] | None
    ceiling_kind: str
    share_of_ceiling: float | None
    threads: int
