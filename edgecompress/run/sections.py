"""What stages report of themselves in `result.json`, as types.

Accuracies and shares are 0..1; that of a regression is R², which the file calls `metric`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from edgecompress.methods.compare import Comparison
    from edgecompress.models.students import Published
    from edgecompress.proportions import PairedRow


class FrozenSection(TypedDict):
    """What of the network cannot be cut: shares (0..1) of its parameters and MACs, the share of the
    parameters by reason, and the lines of code behind a reason.
    """

    params: float
    macs: float
    reasons: dict[str, float]
    lines: dict[str, list[str]]


class CutRow(TypedDict):
    """The channels that each group kept after the cut of an epoch."""

    epoch: int
    widths: dict[str, int]


class GradualSection(TypedDict):
    """How a network was cut while it trained: the share of channels that each group keeps, the
    groups that were left alone with the reason, and whether an epoch met the amount.
    """

    shares: dict[str, float]
    left_alone: dict[str, str]
    cuts: list[CutRow]
    chosen_epoch: int
    met: bool


class _ProfileSection(TypedDict):
    levels: list[float]
    layers: dict[str, list[float]]
    accuracy: list[float]
    unpruned: float
    tolerance: float
    holds_to: float


class ProfileSection(_ProfileSection, total=False):
    """Accuracy, and the share of each layer's weights at zero, by global sparsity level; it
    `holds_to` the last level within `tolerance` of the unpruned accuracy. A classification has its
    `n`, the number of validation samples.
    """

    n: int


class DistillFacts(TypedDict, total=False):
    """What only some ways to distil report."""

    features: str
    feature_layers: dict[str, str]
    feature_weight: float | None
    teacher_digest: str
    tables_computed: int
    tables_read: int
    teacher_validation_accuracy: float
    teacher_cuts: GradualSection
    source: Published


class _DistillSection(TypedDict):
    mode: str
    loss: str
    temperature: float | None
    alpha: float | None
    teacher: str | None
    top_k: int | None
    epochs: int
    chosen_epoch: int
    params: int
    weights_bytes: int
    validation_accuracy: float


class DistillSection(_DistillSection, DistillFacts):
    """How the student learned, from which teacher (None: not one that the recipe brought), and what
    it reached, before any lossless step.
    """


class CompareSection(TypedDict):
    """The results of strategies under one budget of epochs: all, and their statistics."""

    budget: int
    repeats: int
    score: str
    results: dict[str, list[float]]
    summary: dict[str, dict[str, float]]
    student_against: dict[str, Comparison]


class GateRow(TypedDict):
    """The gates of a group in a merging `step` (from 1); `entropy` in bits, `agreement` with the
    cut.
    """

    group: str
    size: int
    kept: int
    mean_open: float
    likely_open: float
    entropy: float
    agreement: float
    step: int


class MimicRow(TypedDict):
    """How well a layer mimics: mean square error over the target's variance, before and after."""

    layer: str
    before: float
    after: float


class _SelectionRow(TypedDict):
    choice: str
    accuracy: float


class SelectionRow(_SelectionRow, total=False):
    """Validation accuracy after the cut by one choice of channels: `draws` of each random one, of
    another one how it differs from that of the gates on the same images.
    """

    draws: list[float]
    against_gates: PairedRow


MergeStep = TypedDict(
    "MergeStep",
    {
        "stacked": float,
        "gated": float,
        "cut": float,
        "l0_distance": float,
        "decided": bool,
        "entropy": float,
        "agreement": float,
        "selection": list[SelectionRow],
        "mimicked": float,
        "images": int,
        "mimic": list[MimicRow],
        "lambda": float,
    },
    total=False,
)
"""One merging: validation accuracy of the wide network, with gates, after the cut; of a greedy one
without gates, after mimicking on so many training images. Whether the gates `decided`, by their
mean entropy in bits and their agreement with the cut, and the cut beside other choices.
"""


class MergeSteps(TypedDict, total=False):
    """What only merging with gates or greedily reports."""

    gates: list[GateRow]
    steps: list[MergeStep]


class _MergeSection(TypedDict):
    method: str
    heads: str
    parents: list[float]
    best_parent: float
    validation_accuracy: float


class MergeSection(_MergeSection, MergeSteps):
    """How networks were merged: validation accuracy of the parents and of the result."""


class GridRow(TypedDict):
    """How the int8 file agrees with the network on its grid; were its scales `used`?"""

    max_abs_logit_diff: float
    top1_agreement: float | None
    samples: int
    used: bool


class SensitivityRecord(TypedDict):
    """A layer quantized alone: the accuracy that it costs, and the relative error of the
    outputs.
    """

    layer: str
    drop: float
    output_error: float


class Int8Section(TypedDict, total=False):
    """What was measured of the int8 file; `drop_unmet` is why it loses more than allowed."""

    qat: GridRow
    sensitivity: list[SensitivityRecord]
    left_in_float: list[str]
    drop_unmet: str


class QatSection(TypedDict):
    """Fine-tuning on the int8 grid: scale and zero point of what each layer reads, and validation
    accuracy of the network in float before it, and on the grid before and after.
    """

    scales: dict[str, list[float]]
    original: float
    before: float
    after: float
    bits: dict[str, int]
    """Bits of the weights that have less than 8."""


class _ContestRow(TypedDict):
    format: str
    params: int
    epochs: int
    accuracy: float


class ContestRow(_ContestRow, total=False):
    """A format that competed: its parameters, the epochs of its short training, and the validation
    accuracy on its grid after them, with its 95 % interval.
    """

    ci95: list[float]


class ContestSection(TypedDict):
    """Which format won the short trainings, and how each did on `n` validation images."""

    winner: str
    rows: list[ContestRow]
    n: int


class AutoRow(TypedDict):
    """A network that competed: its size when cut to the target, the epochs of its short trainings,
    and the validation accuracy after them with its 95 % interval.
    """

    model: str
    params: int
    macs: int
    epochs: int
    accuracy: float
    ci95: list[float]


class AutoSection(TypedDict):
    """Which network won the short trainings for `target_bytes`, on how many training images, and
    how each did on `n` validation images, the best first.
    """

    winner: str
    target_bytes: int
    training_images: int
    n: int
    rows: list[AutoRow]


class SparsifySection(TypedDict):
    """The share of zero weights, in all and in each layer."""

    share: float
    layers: dict[str, float]


class Sections(TypedDict, total=False):
    """What the stages report of themselves, by the name of the stage; one of your own adds its."""

    auto: AutoSection
    frozen: FrozenSection
    compare: CompareSection
    contest: ContestSection
    distill: DistillSection
    gradual: GradualSection
    int8: Int8Section
    merge: MergeSection
    profile: ProfileSection
    qat: QatSection
    sparsify: SparsifySection
