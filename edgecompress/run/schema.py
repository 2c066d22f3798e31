"""The parts of a run's `result.json` and `history.csv`, as types.

Accuracies and shares are 0..1; that of a regression is R², which the file calls `metric`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

from edgecompress.run.sections import Sections

if TYPE_CHECKING:
    from edgecompress.measure.cost import LayerRow
    from edgecompress.measure.latency import Percentiles
    from edgecompress.measure.load import LoadRow
    from edgecompress.proportions import PairedRow
    from edgecompress.run.provenance import GitRow


class HistoryRow(TypedDict):
    """An epoch of the training called `stage`; `cut` channels were removed in it, and `chosen` says
    that its weights were kept.
    """

    stage: str
    epoch: int
    train_loss: float
    validation_loss: float
    validation_accuracy: float
    learning_rate: float
    seconds: float
    params: int
    cut: int
    chosen: bool


class _StageRecord(TypedDict):
    name: str
    accuracy: float
    params: int


class StageRecord(_StageRecord, total=False):
    """A row of the table of stages, without what is not known; `accuracy` is validation, `at_cut`
    that after the cut, `wall_s` None where nothing was timed.
    """

    wall_s: float | None
    lossless: bool
    at_cut: float
    max_abs_logit_diff: float
    bytes: int
    test_accuracy: float
    note: str
    n: int
    ci95: list[float]


class WeightRecord(TypedDict):
    """How the weight of a layer stands in a file of integers: bits of a value, storage, bytes."""

    layer: str
    bits: int
    storage: str
    bytes: int


class _FormatRecord(TypedDict):
    format: str
    file: str
    bytes: int
    accuracy: float
    p50_ms: float
    float_layers: list[str]


class FormatRecord(_FormatRecord, total=False):
    """A number format: its file (a path in the run directory), validation accuracy, and the layers
    that run in float with their bytes, or whose weights are unpacked at each run; `against_fp32` is
    the paired difference on validation, `weights` how those of integers are stored.
    """

    float_bytes: dict[str, int]
    unpacked_layers: list[str]
    weights: list[WeightRecord]
    against_fp32: PairedRow
    n: int
    ci95: list[float]


class RefusedFormat(TypedDict):
    """A number format that the network has no usable file in, and why."""

    format: str
    reason: str


class _Score(TypedDict):
    accuracy: float


class Score(_Score, total=False):
    """The score of a network or file on `n` samples, with its 95 % interval; of a regression the
    `loss`, the mean square error, instead.
    """

    n: int
    ci95: list[float]
    loss: float


class Side(Score):
    """The figures of a file; its score is that of the test split."""

    bytes: int
    params: int
    macs: int
    latency_ms: Percentiles
    threads: int


class ParityRow(TypedDict):
    """Largest |difference of logits| between network and file, and the share of equal classes (None
    for a regression).
    """

    max_abs_logit_diff: float
    top1_agreement: float | None
    samples: int


class _ControlRow(TypedDict):
    validation_accuracy: float
    params: int
    epochs: int


class ControlRow(_ControlRow, total=False):
    """The same training without teacher or cuts. A stage `measure` puts the score on the test split
    (and the `loss` of a regression) in the place of the path `onnx`.
    """

    onnx: str
    accuracy: float
    loss: float
    n: int
    ci95: list[float]


class TargetsRow(TypedDict):
    """The targets of a compression; None for those that were not given."""

    bytes: int | None
    macs: int | None
    latency_s: float | None
    max_drop: float | None


class ConstantRow(TypedDict):
    """One group of `size` channels: `constant` are constant or unread, of these `unread` are not
    read and `removed` were dropped; `reason` says why not all.
    """

    group: str
    size: int
    constant: int
    unread: int
    removed: int
    reason: str


class FoldedPoolRow(TypedDict):
    """A pool that was folded, and the input shape [C, H, W] that the network now holds for."""

    pool: str
    input_shape: list[int]


class LatencyRatio(TypedDict):
    """Latency of the file that ships / of the teacher's: the median over interleaved blocks in
    fresh processes, and its 95 % interval, unbounded (None) where the time ended after the first.
    """

    median: float
    ci95: list[float | None]


class Figures(TypedDict, total=False):
    """What only some runs have: the final figures of a stage `measure`, and the `metric_name` of a
    score that is no accuracy.
    """

    target_bytes: int | None
    targets: TargetsRow
    plan_reason: str
    smallest_bytes: int | None
    folded_pools: list[FoldedPoolRow]
    constant_channels: list[ConstantRow]
    teacher: Side
    student: Side
    parity: ParityRow
    latency_ratio: LatencyRatio
    load: LoadRow
    accuracy_difference: PairedRow
    control: ControlRow
    metric_name: str
    refused_formats: list[RefusedFormat]


class Environment(TypedDict):
    """What a run took (seconds, bytes), and where it ran."""

    wall_s: float
    peak_rss_bytes: int
    versions: dict[str, str]
    hardware: dict[str, object]


class _RunResult(Environment):
    schema: int
    command: str
    model: str
    data: str
    seed: int
    artifact: str
    bytes: int
    format: str
    stages: list[StageRecord]
    formats: list[FormatRecord]
    format_reason: str
    widths: dict[str, list[int]]
    layers: list[LayerRow]
    missed: list[str]
    data_label: str
    data_digest: str
    recipe_digest: str
    images: dict[str, int]
    image_shape: list[int]
    command_line: str
    started: str
    git: GitRow | None


class RunResult(_RunResult, Figures, Sections):
    """The content of `result.json` as it is in memory, where a score is called accuracy whatever
    its `metric_name` (absent: accuracy).
    """
