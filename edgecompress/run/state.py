"""What flows from stage to stage: networks, and typed facts about them.

Everything in a `State` but the networks is plain data: numbers, texts, tuples, mappings and frozen
dataclasses of these. `run.store` writes it as JSON and reads it back to an equal value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import cast

from pydantic import JsonValue
from torch import nn

from edgecompress.data import Preprocess
from edgecompress.errors import EdgecompressError, UsageError
from edgecompress.measure.cost import LayerCost
from edgecompress.models.registry import ModelSource
from edgecompress.proportions import Paired
from edgecompress.run.schema import Figures, FormatRecord, HistoryRow, StageRecord, WeightRecord
from edgecompress.train.fit import FitResult
from edgecompress.train.history import EpochRow

Section = Mapping[str, JsonValue]
"""What a stage reports of itself: it stands in `result.json` under the stage's name."""


@dataclass(frozen=True)
class Network:
    """A network, what it is built from, and how it reads pixels (None: as the run's data does)."""

    module: nn.Module
    source: ModelSource
    preprocess: Preprocess | None = None


@dataclass(frozen=True)
class StageRow:
    """One row of the table of stages. `accuracy` is validation, 0..1.

    `wall_s` None takes the time of the stage that adds the row, unless it is not `timed`.
    """

    name: str
    accuracy: float
    params: int
    wall_s: float | None = None
    timed: bool = True
    lossless: bool | None = None
    at_cut: float | None = None
    """Validation accuracy after the cut, before the network was trained again."""
    max_abs_logit_diff: float | None = None
    bytes: int | None = None
    test_accuracy: float | None = None
    note: str | None = None
    n: int | None = None
    """Samples of `accuracy`; None: the validation split of the run's data."""

    def as_dict(self) -> StageRecord:
        """The row as `result.json` has it: without what it does not know."""
        known = {k: v for k, v in asdict(self).items() if v is not None}
        known.pop("timed")
        return cast(StageRecord, known if self.timed else {**known, "wall_s": None})


@dataclass(frozen=True, kw_only=True)
class EpochRecord(EpochRow):
    """An epoch of the training called `stage`; `chosen` when its weights were kept."""

    stage: str
    chosen: bool = False

    def as_dict(self) -> HistoryRow:  # type: ignore[override]
        """Column name to value, in column order."""
        values = asdict(self)
        return cast(HistoryRow, {"stage": values.pop("stage"), **values})


@dataclass(frozen=True)
class Baseline:
    """The network that others are compared with, before any lossless step.

    `bytes` and `onnx` (a path in the run directory) are of its fp32 file, which is written only
    when a stage `measure` follows.
    """

    params: int
    macs: int
    validation_accuracy: float
    bytes: int | None = None
    onnx: str | None = None


@dataclass(frozen=True)
class SizePlan:
    """How small the network must become, and in which formats it may ship.

    A limit that is None does not hold. `bytes` is of the file in the first of `formats`, of which
    `fixed_bytes` do not depend on any width. `floor` is the least share of a group's channels that
    stays, `round_to` the multiple that widths are rounded to. `amount` is the text it stands for.
    """

    prune: bool
    formats: tuple[str, ...]
    bytes: int | None = None
    macs: int | None = None
    params: int | None = None
    latency_s: float | None = None
    max_drop: float | None = None
    floor: float = 0.0
    round_to: int = 1
    fixed_bytes: float = 0.0
    smallest_bytes: int | None = None
    reason: str = ""
    amount: str | None = None
    contenders: tuple[SizePlan, ...] = ()
    """Plans for formats of fewer bits that may turn out better (stage `contest`)."""


@dataclass(frozen=True)
class WeightRow:
    """How the weight of a layer stands in a file of integers: the bits of a value, how they are
    stored, and their bytes.
    """

    layer: str
    bits: int
    storage: str
    bytes: int

    def as_dict(self) -> WeightRecord:
        """As `result.json` has it."""
        return {
            "layer": self.layer,
            "bits": self.bits,
            "storage": self.storage,
            "bytes": self.bytes,
        }


@dataclass(frozen=True)
class FormatRow:
    """One number format of the network: its file (a path in the run directory), bytes, validation
    accuracy, p50 in ms, the layers that run in float or unpack their weights at each run, and how
    it differs from fp32 on the same images.
    """

    format: str
    file: str
    bytes: int
    accuracy: float
    p50_ms: float
    float_layers: tuple[str, ...] = ()
    unpacked_layers: tuple[str, ...] = ()
    float_bytes: Mapping[str, int] | None = None
    weights: tuple[WeightRow, ...] = ()
    against_fp32: Paired | None = None

    def loses_more_than(self, share: float) -> bool:
        """Is it worse than fp32 by more than `share` of all images, with 95 % certainty? On 40
        images 1 % is 0.4 of an image: one image alone says little.
        """
        if self.against_fp32 is None:
            return False
        return -self.against_fp32.interval[1] > share

    def as_dict(self) -> FormatRecord:
        """The row as `result.json` has it."""
        values: FormatRecord = {
            "format": self.format,
            "file": self.file,
            "bytes": self.bytes,
            "accuracy": self.accuracy,
            "p50_ms": self.p50_ms,
            "float_layers": list(self.float_layers),
        }
        if self.unpacked_layers:
            values["unpacked_layers"] = list(self.unpacked_layers)
        if self.float_bytes is not None:
            values["float_bytes"] = dict(self.float_bytes)
        if self.weights:
            values["weights"] = [row.as_dict() for row in self.weights]
        if self.against_fp32 is not None:
            values["against_fp32"] = self.against_fp32.as_dict()
        return values


@dataclass(frozen=True)
class Shipped:
    """The formats that were made, the one that ships, and why; `refused` gives the reason for each
    format that the network has no usable file in.
    """

    formats: tuple[FormatRow, ...]
    chosen: FormatRow
    reason: str
    refused: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Int8Attempt:
    """An int8 file that lost too much accuracy, kept while fp16 is planned: its plan, what would
    have shipped, which targets it missed, and the folder of its files.
    """

    plan: SizePlan
    shipped: Shipped
    missed: tuple[str, ...]
    folder: str


@dataclass(frozen=True)
class Control:
    """The student trained without the teacher; `onnx` is a path in the run directory."""

    validation_accuracy: float
    params: int
    epochs: int
    onnx: str


@dataclass(frozen=True)
class LearnedGrid:
    """Scale and zero point of what each layer reads, from fine-tuning on the int8 grid, the
    validation accuracy of the network in float before it (`original`), and the layers whose weights
    have less than 8 bits.
    """

    scales: Mapping[str, tuple[float, int]]
    original: float
    bits: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class State:
    """What one stage leaves for the next. Teacher and model never share a module."""

    source: ModelSource
    """What the network of the recipe is built from."""
    model: Network | None = None
    """The network that is made smaller."""
    teacher: Network | None = None
    """The network that it learns from."""
    teacher_given: bool = False
    """The recipe brought the teacher: no stage puts the model in its place."""
    baseline: Baseline | None = None
    layers: tuple[LayerCost, ...] = ()
    """Cost of each layer of the baseline."""
    plan: SizePlan | None = None
    """What the file that ships must hold."""
    prune_plan: SizePlan | None = None
    """What the current series of prune steps works towards."""
    widths: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Channels of each group before the first cut of the run, and now."""
    folded_pools: tuple[Section, ...] = ()
    constant_channels: tuple[Section, ...] = ()
    control: Control | None = None
    grid: LearnedGrid | None = None
    exported: bool = False
    shipped: Shipped | None = None
    int8_attempt: Int8Attempt | None = None
    sections: Mapping[str, Section] = field(default_factory=dict)
    """What stages report of themselves, by the name of the stage."""
    figures: Section | None = None
    """The final figures (stage `measure`), as `result.json` has them."""
    missed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Targets that were missed, a text each, by the stage that found it."""
    rows: tuple[StageRow, ...] = ()
    history: tuple[EpochRecord, ...] = ()

    def __post_init__(self) -> None:
        """Raises `EdgecompressError` when teacher and model are one module."""
        if self.model and self.teacher and self.model.module is self.teacher.module:
            raise EdgecompressError(
                "teacher and model are the same module, so one would learn from itself: copy it"
            )

    def need_model(self) -> nn.Module:
        """The model. Raises `UsageError` when no stage made one."""
        if self.model is None:
            raise UsageError("this stage needs a network: put a stage train or load before it")
        return self.model.module

    def need_teacher(self) -> Network:
        """The teacher. Raises `UsageError` when no stage brought one."""
        if self.teacher is None:
            raise UsageError(
                "this stage needs a teacher: put a stage teacher, train or load before it"
            )
        return self.teacher

    def need_baseline(self) -> Baseline:
        """The baseline. Raises `UsageError` when no stage measured one."""
        if self.baseline is None:
            raise UsageError(
                "this stage needs a baseline: put a stage train, load or merge before it"
            )
        return self.baseline

    def with_model(self, module: nn.Module) -> State:
        """A copy whose model is `module`, of the same source."""
        known = self.model
        source = self.source if known is None else known.source
        preprocess = None if known is None else known.preprocess
        return replace(self, model=Network(module, source, preprocess))

    def with_row(self, row: StageRow) -> State:
        """A copy with one more row."""
        return replace(self, rows=(*self.rows, row))

    def with_history(self, stage: str, result: FitResult | None) -> State:
        """A copy with the epochs of one training, which is called `stage`."""
        if result is None:
            return self
        epochs = [
            EpochRecord(**asdict(row), stage=stage, chosen=row.epoch == result.best_epoch)
            for row in result.history
        ]
        return replace(self, history=(*self.history, *epochs))

    def with_section(self, name: str, section: Mapping[str, object]) -> State:
        """A copy in which the stage `name` reports `section`, JSON values, of itself."""
        return replace(self, sections={**self.sections, name: cast(Section, section)})

    def with_figures(self, figures: Figures) -> State:
        """A copy with the final figures."""
        return replace(self, figures=cast(Section, figures))

    def history_rows(self) -> list[HistoryRow]:
        """The epochs as `history.csv` and the report have them."""
        return [row.as_dict() for row in self.history]
