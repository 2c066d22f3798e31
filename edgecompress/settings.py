"""What a recipe may say of each stage, checked: unknown keys are errors, texts with units become
numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from edgecompress import units
from edgecompress.errors import UsageError


def _via(parse: Callable[[str], float]) -> Callable[[Any], Any]:
    """Accept text with a unit, or a number that is already parsed."""

    def convert(value: Any) -> Any:
        if isinstance(value, bool) or value is None or isinstance(value, (int, float)):
            return value
        try:
            return parse(str(value))
        except UsageError as error:
            raise ValueError(str(error)) from error

    return convert


def _size(value: Any) -> Any:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        raise ValueError(f"size '{value}' has no unit: write it like 4MB or 250KiB")
    return _via(units.parse_size)(value)


Size = Annotated[int, BeforeValidator(_size), Field(gt=0)]
Count = Annotated[int, BeforeValidator(_via(units.parse_count)), Field(gt=0)]
Seconds = Annotated[float, BeforeValidator(_via(units.parse_duration)), Field(gt=0)]
Share = Annotated[float, BeforeValidator(_via(units.parse_share)), Field(ge=0, le=1)]


def _amount(value: Any) -> Any:
    """Checked, and kept as it was written."""
    if value is None or isinstance(value, bool):
        return value
    try:
        units.parse_amount(str(value))
    except UsageError as error:
        raise ValueError(str(error)) from error
    return str(value)


Amount = Annotated[str, BeforeValidator(_amount)]
"""`50%` of the parameters to remove, or what may be left: `2Mparams`, `10MMACs`, `4MB` (the fp32
file).
"""
Quantize = Literal["auto", "int8", "fp16", "none"]
Criterion = Literal["l1", "l2", "bn", "taylor", "random"]


class Strict(BaseModel):
    """Frozen settings in which an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Training(Strict):
    """How a stage trains. Values left out are chosen from the network and the data
    (`train.fit.default_settings`).
    """

    epochs: Annotated[int, Field(ge=0)] | None = None
    batch_size: Annotated[int, Field(ge=2)] | None = None
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    nesterov: bool = True
    """With `sgd`: Nesterov's momentum, or the plain one."""
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    lr_schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup: Share = 0.15
    """Share of the steps over which the learning rate rises."""
    clip: Annotated[float, Field(gt=0)] | None = 1.0
    """Largest norm of the gradient; null: unbounded."""
    patience: Annotated[int, Field(ge=1)] | None = None
    """Stop after so many epochs without a better one. The best epoch is restored, with patience or
    without.
    """
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Probability of every dropout layer while this stage trains; None chooses (0 for short runs on
    small data).
    """
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16: the forward pass under autocast; auto: bf16 on GPUs that have it, fp32 elsewhere."""
    flip: bool | None = None
    shift: Annotated[int, Field(ge=0)] | None = None
    cutout: Annotated[int, Field(ge=0)] | None = None
    """Augmentation in pixels of the images in memory; None: the data set's own."""


class Beginning(Training):
    """A network from scratch, or from `weights` (a file of tensors, or `imagenet`), and its
    training on the labels.
    """

    weights: str | None = None
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    train_last: Annotated[int, Field(ge=0)] | None = None
    """Train only the last so many convolutions and what comes after them; the rest stays frozen.
    None trains all.
    """


class TrainStage(Beginning):
    """Train the recipe's network."""

    stage: Literal["train"]


class LoadStage(Strict):
    """Take a network from a checkpoint, as the teacher."""

    stage: Literal["load"]
    checkpoint: str


class TeacherStage(Beginning):
    """The network to learn from: that of a `checkpoint`, or a `model` by name, trained here (with 0
    epochs: as it begins).

    With a checkpoint, `model` only names again the user's own code that builds it
    (`file.py:factory`).
    """

    stage: Literal["teacher"]
    checkpoint: str | None = None
    model: str | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> TeacherStage:
        if self.checkpoint is None and self.model is None:
            raise ValueError("give checkpoint (a trained teacher) or model (a name, trained here)")
        return self


class SimplifyStage(Strict):
    """The lossless steps: fold enlarging pools, drop channels whose output never changes."""

    stage: Literal["simplify"]


class Targets(Strict):
    """What the result must meet; several must all hold."""

    bytes: Size | None = None
    macs: Count | None = None
    latency: Seconds | None = None
    max_drop: Share | None = None

    def any(self) -> bool:
        """True when at least one target is given."""
        return any(v is not None for v in (self.bytes, self.macs, self.latency, self.max_drop))


class PlanStage(Strict):
    """Choose the number format and the budgets for `targets`."""

    stage: Literal["plan"]
    targets: Targets
    quantize: Quantize = "auto"
    floor: Share = 0.02
    round_to: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"


class PruneStage(Training):
    """Remove channels in `steps`, each followed by distillation from the teacher (if there is one)
    or training.

    `auto` takes as many steps as keep each below a factor of four of what the budget counts.
    """

    stage: Literal["prune"]
    amount: Amount | None = None
    """How far; None takes the plan's budgets."""
    scope: Literal["cost", "local", "global"] = "cost"
    """What competes: score a unit of cost over the whole network, each group by itself, or all
    groups by score over their mean.
    """
    layers: tuple[str, ...] | None = None
    """Only the channels that these layers make; None: all."""
    steps: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    criterion: Criterion = "taylor"
    score_batches: Annotated[int, Field(ge=1)] = 8
    floor: Share = 0.02
    round_to: Annotated[int, Field(ge=1)] = 1
    temperature: Annotated[float, Field(gt=0)] = 4.0
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.7


class GradualStage(Training):
    """Train and prune at once: after some epochs channels go, the network is rebuilt smaller, and
    training goes on.

    With `amount`, `shares` says how the layers share it: `static` (the same share of each),
    `dynamic` (what global magnitude pruning would take from each), or the share of channels that
    each named layer loses in the end. `step` is the share that one cut removes. The epoch chosen is
    the best one that meets the amount.
    """

    stage: Literal["gradual"]
    amount: Amount | None = None
    shares: Literal["static", "dynamic"] | dict[str, Share] = "static"
    step: Share = 0.1
    schedule: Literal["early", "middle", "late"] | tuple[int, ...] = "early"
    scope: Literal["local", "global"] = "local"
    layers: tuple[str, ...] | None = None
    criterion: Criterion = "l1"
    score_batches: Annotated[int, Field(ge=1)] = 8
    floor: Share = 0.02
    control: bool = False
    """Train the same network once more without cuts, for the comparison in the report."""
    temperature: Annotated[float, Field(gt=0)] = 4.0
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.7

    @model_validator(mode="after")
    def _amount_or_shares(self) -> GradualStage:
        if (self.amount is None) == isinstance(self.shares, str):
            raise ValueError(
                "give amount with shares static or dynamic, or shares for named layers "
                "without amount"
            )
        if not isinstance(self.schedule, str) and self.epochs is not None:
            wrong = [epoch for epoch in self.schedule if not 1 <= epoch <= self.epochs]
            if wrong or not self.schedule:
                raise ValueError(
                    f"schedule names epoch {wrong[0] if wrong else 'none'}: allowed are "
                    f"1..{self.epochs}"
                )
        return self


class ProfileStage(Strict):
    """The share that global magnitude pruning takes from each layer at each level, and the accuracy
    there; the network is not changed.
    """

    stage: Literal["profile"]
    levels: tuple[Share, ...] = tuple(level / 20 for level in range(1, 20))
    tolerance: Share = 0.01
    """Points of validation accuracy that count as holding."""


class ShrinkStage(Strict):
    """Remove channels that never change or are never read: a zeroed network becomes smaller, and
    computes the same.
    """

    stage: Literal["shrink"]


class DistillStage(Training):
    """Train the network on what the teacher says, or on the labels when there is no teacher.

    `offline`: the teacher is fixed, and what it says of each view of the images is computed once
    and cached. `online`: it trains on the labels at the same time, each batch going once through
    both. `mutual`: each also learns from the other (Zhang et al. 2018).
    """

    stage: Literal["distill"]
    mode: Literal["offline", "online", "mutual"] = "offline"
    loss: Literal["kl", "softmax-mse", "dkd"] = "kl"
    temperature: Annotated[float, Field(gt=0)] | None = None
    """None: 4 (kl, dkd) or 5 (softmax-mse)."""
    alpha: Annotated[float, Field(ge=0, le=1)] | None = None
    """Weight of the teacher beside the labels' 1 - alpha. None: 0.7 (kl), 1 (softmax-mse) or 0.5
    (dkd).
    """
    top_k: Annotated[int, Field(ge=1)] | None = None
    """Keep only so many of the teacher's logits (loss kl, offline)."""
    views: Annotated[int, Field(ge=1)] | None = None
    """Augmented views of each image that the epochs go through in turn; None: a new one each
    epoch.
    """
    features: Literal["hint", "attention"] | None = None
    feature_layers: dict[str, str] | None = None
    """{student's convolution: teacher's}; None pairs the last ones before each change of size."""
    feature_weight: Annotated[float, Field(gt=0)] = 1.0
    control: bool = False
    """Train the same student once more for the same epochs without the teacher; both are
    reported.
    """
    prune_student: Amount | None = None
    prune_teacher: Amount | None = None
    """How far a network is cut while it trains (as in stage gradual; the teacher's only where it
    trains).
    """
    step: Share = 0.1
    schedule: Literal["early", "middle", "late"] = "early"

    def asked_of_a_teacher(self) -> list[str]:
        """Names of the settings, other than the defaults, that say how to learn from a teacher."""
        names = (
            "mode",
            "loss",
            "temperature",
            "alpha",
            "top_k",
            "features",
            "feature_layers",
            "control",
            "prune_student",
            "prune_teacher",
        )
        return [
            name for name in names if getattr(self, name) != type(self).model_fields[name].default
        ]

    @model_validator(mode="after")
    def _fitting(self) -> DistillStage:
        if self.top_k is not None and (self.loss != "kl" or self.mode != "offline"):
            raise ValueError("top_k applies to loss kl in mode offline: drop it, or choose these")
        if self.mode != "offline" and self.features is not None:
            raise ValueError(f"features {self.features} need a fixed teacher: use mode offline")
        if self.control and self.epochs == 0:
            raise ValueError(
                "control with 0 epochs compares nothing: give epochs above 0, or drop control"
            )
        if self.feature_layers is not None and self.features is None:
            raise ValueError(
                "feature_layers pairs layers for features: set features to hint or attention"
            )
        if self.mode == "offline" and self.prune_teacher is not None:
            raise ValueError("prune_teacher cuts a teacher that trains: use mode online or mutual")
        if self.mode == "mutual" and (
            self.loss != "kl" or self.temperature is not None or self.alpha is not None
        ):
            raise ValueError(
                "mode mutual has a loss of its own (cross-entropy + KL at T = 1): drop loss, "
                "temperature and alpha"
            )
        return self


class MergeStage(Training):
    """Merge the networks of several checkpoints into one of the same size (or `width` times it),
    and fine-tune it.

    `heads` is `average`, or `separate` for networks of different classes: the recipe's data is then
    `A+B`, one set for each checkpoint, in their order, and the result has all their outputs side by
    side.

    `gates`: their wide network learns which channels it needs (`methods.gates`) for `epochs`, is
    cut to the most probably open ones, and trains on for `finetune_epochs`. `greedy`: layer by
    layer, on what the network computes for some training images (`methods.greedy`), `epochs` for
    each layer. `average` and `align` are baselines: the mean of the weights as they are, or after
    the channels of each network were matched to the first one's (Git Re-Basin, Ainsworth et al.
    2023).
    """

    stage: Literal["merge"]
    checkpoints: tuple[str, ...] = ()
    train_parents: Annotated[int, Field(ge=2)] | None = None
    """Instead of checkpoints: train so many networks of the recipe's kind first, for
    `parent_epochs` each.
    """
    parent_epochs: Annotated[int, Field(ge=1)] | None = None
    method: Literal["gates", "greedy", "average", "align"] = "gates"
    heads: Literal["average", "separate"] = "average"
    hierarchical: bool = False
    """Merge in pairs, and the results again, instead of all at once."""
    width: Annotated[float, Field(gt=0)] = 1.0
    """Channels that the result keeps, as a multiple of one network's."""
    finetune_epochs: Annotated[int, Field(ge=0)] | None = None
    draw: Literal["batch", "sample"] = "batch"
    """How often gates are drawn."""
    noise: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Width of the draws' uniform noise around its middle; 0 draws nothing."""
    gate_rate: Annotated[float, Field(gt=0)] = 10.0
    """Learning rate of the gates over that of the weights."""
    lambda_schedule: Literal["source", "linear", "cosine", "constant"] = "source"
    lambda_start: Annotated[float, Field(gt=0)] = 0.01
    lambda_scale: Annotated[float, Field(gt=0)] = 1.0
    """Factor on every lambda."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    require_better: bool = False
    """A result below its best parent counts as a missed target."""

    @model_validator(mode="after")
    def _powers_of_two(self) -> MergeStage:
        count = self.train_parents or len(self.checkpoints)
        if bool(self.checkpoints) == (self.train_parents is not None) or count < 2:
            raise ValueError(
                "give at least 2 checkpoints, or train_parents (a number of networks to "
                "train first)"
            )
        if self.parent_epochs is not None and self.train_parents is None:
            raise ValueError(
                "parent_epochs goes with train_parents: checkpoints are trained already"
            )
        if self.heads == "separate" and self.train_parents is not None:
            raise ValueError(
                "heads separate merges networks of different classes: train them first, and "
                "give checkpoints"
            )
        if self.hierarchical and count & (count - 1):
            raise ValueError(
                f"hierarchical merges pairs of pairs: give 2, 4, 8, ... checkpoints, not {count}"
            )
        if self.method in ("gates", "greedy") and self.epochs == 0:
            raise ValueError(
                f"{self.method} learns nothing in 0 epochs: give epochs above 0, or method "
                "average or align"
            )
        foreign = {
            "gates": (),
            "greedy": ("draw", "noise"),
            "average": (
                "hierarchical",
                "width",
                "draw",
                "noise",
                "lambda_schedule",
                "lambda_scale",
                "gate_rate",
            ),
        }
        given = [
            n
            for n in foreign.get(self.method, foreign["average"])
            if getattr(self, n) != type(self).model_fields[n].default
        ]
        if given:
            raise ValueError(
                f"method {self.method} has no such gates: {', '.join(sorted(given))} apply "
                "to method gates"
            )
        if self.heads == "separate" and (self.hierarchical or self.method in ("average", "align")):
            raise ValueError(
                "heads separate keeps all outputs: merge all networks at once, by gates or greedy"
            )
        together = 2 if self.hierarchical else count
        if self.width > together:
            where = (
                f"the {count} networks"
                if together == count
                else "two networks, of which each merging of --hierarchical is,"
            )
            raise ValueError(
                f"width {self.width:g} is more than {where} have together: allowed is up to "
                f"{together}"
            )
        return self


class CompareStage(Training):
    """Strategies under one budget of epochs, several times each: see `methods.compare`. `epochs`
    has no meaning here.
    """

    stage: Literal["compare"]
    budget: Annotated[int, Field(ge=6)] = 12
    """Epochs of each strategy."""
    repeats: Annotated[int, Field(ge=2)] = 3
    lambda_scale: Annotated[float, Field(gt=0)] = 1.0
    lambda_start: Annotated[float, Field(gt=0)] | None = None
    """None: 0.01, on the sine problem 0.05."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @model_validator(mode="after")
    def _no_epochs(self) -> CompareStage:
        if self.budget % 6:
            raise ValueError(
                f"budget {self.budget} cannot be spent alike: strategies take thirds and "
                "sixths of it; give a multiple of 6"
            )
        if self.epochs is not None:
            raise ValueError(
                f"epochs {self.epochs}: a comparison has a budget of epochs for each "
                "strategy; set budget"
            )
        if self.patience is not None:
            raise ValueError(
                f"patience {self.patience} would end strategies before their budget: leave "
                "it out of a comparison"
            )
        return self

    def unlike_the_source(self) -> list[str]:
        """Names of the settings, other than the defaults, that the sine problem's networks do not
        have: they train as the source did.
        """
        theirs = {
            "stage",
            "budget",
            "repeats",
            "learning_rate",
            "batch_size",
            "lambda_scale",
            "lambda_start",
        }
        names = [name for name in type(self).model_fields if name not in theirs]
        return [
            name for name in names if getattr(self, name) != type(self).model_fields[name].default
        ]


class QatStage(Training):
    """Fine-tune the network on the int8 grid (`methods.qat`), at a tenth of the usual rate; stage
    `quantize` takes its scales.
    """

    stage: Literal["qat"]
    temperature: Annotated[float, Field(gt=0)] = 4.0
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.7


class ExportStage(Strict):
    """Write `model-fp32.onnx` and check it against the network.

    `min_ort` is the oldest ONNX Runtime that must load what ships. With `embed_preprocess` what
    ships reads decoded images, uint8 (batch, height, width, C) of any size, and resizes and
    normalises them itself.
    """

    stage: Literal["export"]
    embed_preprocess: bool = False
    min_ort: str | None = None

    @model_validator(mode="after")
    def _known_runtime(self) -> ExportStage:
        if self.min_ort is not None:
            from edgecompress.export.portable import limits, parse_runtime

            try:
                opset, _ = limits(parse_runtime(self.min_ort))
            except UsageError as error:
                raise ValueError(str(error)) from error
            if self.embed_preprocess and opset < 18:
                raise ValueError(
                    f"embed_preprocess needs opset 18, ONNX Runtime {self.min_ort} loads "
                    f"{opset}: give min_ort 1.14 or later"
                )
        return self


class QuantizeStage(Strict):
    """Make the smaller number formats, measure them, and choose what ships."""

    stage: Literal["quantize"]
    quantize: Quantize = "auto"
    calibration_images: Annotated[int, Field(ge=1)] = 256
    method: Literal["minmax", "entropy", "percentile"] = "minmax"
    max_int8_loss: Share = 0.01
    """Points of validation accuracy that int8 may lose against fp32 before fp16 is planned
    instead.
    """
    max_drop: Share | None = None
    """Leave the most sensitive layers in float until int8 loses at most so many points of
    validation accuracy.
    """
    sensitivity: bool = False
    """Measure what each layer costs when it alone is quantized (`max_drop` does too)."""
    strict: bool = False
    """An int8 file with a convolution or linear layer left in float counts as a missed target."""

    @model_validator(mode="after")
    def _about_int8(self) -> QuantizeStage:
        names = ("method", "max_drop", "sensitivity", "strict")
        given = [
            name for name in names if getattr(self, name) != type(self).model_fields[name].default
        ]
        if self.quantize in ("fp16", "none") and given:
            raise ValueError(
                f"{', '.join(given)} say how int8 is made: with quantize {self.quantize} "
                "leave them out"
            )
        return self


class SearchStage(Training):
    """Find the smallest file whose accuracy is within `max_drop` of the teacher's: halve, distil,
    measure, then refine.
    """

    stage: Literal["search"]
    max_drop: Share
    quantize: Quantize = "auto"
    refine: Annotated[int, Field(ge=0)] = 2
    criterion: Criterion = "taylor"
    floor: Share = 0.02
    round_to: Annotated[int, Field(ge=1)] = 1


class MeasureStage(Strict):
    """Read the test split once, measure latency and cost, and write `result.json`."""

    stage: Literal["measure"]
    samples: Annotated[int, Field(ge=20)] = 200


AnyStage = Annotated[
    TrainStage
    | LoadStage
    | TeacherStage
    | SimplifyStage
    | PlanStage
    | PruneStage
    | GradualStage
    | ProfileStage
    | ShrinkStage
    | DistillStage
    | MergeStage
    | CompareStage
    | QatStage
    | ExportStage
    | QuantizeStage
    | SearchStage
    | MeasureStage,
    Field(discriminator="stage"),
]


STAGE_NAMES = tuple(
    get_args(kind.model_fields["stage"].annotation)[0] for kind in get_args(get_args(AnyStage)[0])
)
"""Every `stage:` that a recipe may name."""
