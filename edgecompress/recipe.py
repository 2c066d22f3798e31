"""Recipes: YAML that says which network, which data, and which stages. Every verb that trains writes one, and `run` reads one.

    model: vgg16
    data: digits
    stages:
      - stage: train
      - stage: prune
        amount: 50%

Unknown keys are errors, and all errors are reported at once, each with its line. `resolved.yaml` is a recipe too, with the
origin of each value as a comment.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

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
"""`50%` of the parameters to remove, or what may be left: `2Mparams`, `10MMACs`, `4MB` (the fp32 file)."""
Quantize = Literal["auto", "int8", "fp16", "none"]
Criterion = Literal["l1", "l2", "bn", "taylor", "random"]


class Strict(BaseModel):
    """Frozen settings in which an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Training(Strict):
    """How a stage trains. Values left out are chosen from the network and the data (`train.fit.default_settings`)."""

    epochs: Annotated[int, Field(ge=0)] | None = None
    batch_size: Annotated[int, Field(ge=2)] | None = None
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    optimizer: Literal["adamw", "sgd"] = "adamw"
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Probability of every dropout layer while this stage trains; None chooses (0 for short runs on small data)."""


class TrainStage(Training):
    """Train the network from scratch, or start from `weights` (a file of tensors, or `imagenet`)."""

    stage: Literal["train"]
    weights: str | None = None
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1


class LoadStage(Strict):
    """Take a network from a checkpoint, as the teacher."""

    stage: Literal["load"]
    checkpoint: str


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
    """Remove channels in `steps`, each followed by distillation from the teacher (if there is one) or training.

    `auto` takes as many steps as keep each below a factor of four of what the budget counts.
    """

    stage: Literal["prune"]
    amount: Amount | None = None
    """How far; None takes the plan's budgets."""
    scope: Literal["cost", "local", "global"] = "cost"
    """What competes: score a unit of cost over the whole network, each group by itself, or all groups by score over their mean."""
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
    """Train and prune at once: after some epochs channels go, the network is rebuilt smaller, and training goes on.

    With `amount`, `shares` says how the layers share it: `static` (the same share of each), `dynamic` (what global magnitude pruning would
    take from each), or the share of channels that each named layer loses in the end. `step` is the share that one cut removes. The epoch
    chosen is the best one that meets the amount.
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
    patience: Annotated[int, Field(ge=1)] | None = None
    control: bool = False
    """Train the same network once more without cuts, for the comparison in the report."""
    temperature: Annotated[float, Field(gt=0)] = 4.0
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.7

    @model_validator(mode="after")
    def _amount_or_shares(self) -> GradualStage:
        if (self.amount is None) == isinstance(self.shares, str):
            raise ValueError("give amount with shares static or dynamic, or shares for named layers without amount")
        if not isinstance(self.schedule, str) and self.epochs is not None:
            wrong = [epoch for epoch in self.schedule if not 1 <= epoch <= self.epochs]
            if wrong or not self.schedule:
                raise ValueError(f"schedule names epoch {wrong[0] if wrong else 'none'}: allowed are 1..{self.epochs}")
        return self


class ProfileStage(Strict):
    """The share that global magnitude pruning takes from each layer at each level, and the accuracy there; the network is not changed."""

    stage: Literal["profile"]
    levels: tuple[Share, ...] = tuple(level / 20 for level in range(1, 20))
    tolerance: Share = 0.01
    """Points of validation accuracy that count as holding."""


class ShrinkStage(Strict):
    """Remove channels that never change or are never read: a zeroed network becomes smaller, and computes the same."""

    stage: Literal["shrink"]


class DistillStage(Training):
    """Train the network on the teacher's outputs (Hinton et al. 2015), or on the labels when there is no teacher."""

    stage: Literal["distill"]
    temperature: Annotated[float, Field(gt=0)] = 4.0
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.7


class ExportStage(Strict):
    """Write `model-fp32.onnx` and check it against the network."""

    stage: Literal["export"]


class QuantizeStage(Strict):
    """Make the smaller number formats, measure them, and choose what ships."""

    stage: Literal["quantize"]
    quantize: Quantize = "auto"
    calibration_images: Annotated[int, Field(ge=1)] = 256
    method: Literal["minmax", "entropy", "percentile"] = "minmax"
    max_int8_loss: Share = 0.01
    """Points of validation accuracy that int8 may lose against fp32 before fp16 is planned instead."""


class SearchStage(Training):
    """Find the smallest file whose accuracy is within `max_drop` of the teacher's: halve, distil, measure, then refine."""

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
    | SimplifyStage
    | PlanStage
    | PruneStage
    | GradualStage
    | ProfileStage
    | ShrinkStage
    | DistillStage
    | ExportStage
    | QuantizeStage
    | SearchStage
    | MeasureStage,
    Field(discriminator="stage"),
]


STAGE_NAMES = tuple(get_args(kind.model_fields["stage"].annotation)[0] for kind in get_args(get_args(AnyStage)[0]))
"""Every `stage:` that a recipe may name."""


class Recipe(Strict):
    """A whole run."""

    command: str = "run"
    model: str
    data: str = "digits"
    seed: int = 0
    device: str = "auto"
    threads: Annotated[int, Field(ge=1)] | None = None
    image_size: Annotated[int, Field(ge=8)] | None = None
    skip_bad: bool = False
    stages: Annotated[tuple[AnyStage, ...], Field(min_length=1)]

    @model_validator(mode="before")
    @classmethod
    def _no_null_stages(cls, values: Any) -> Any:
        if isinstance(values, dict) and "stages" in values and values["stages"] is None:
            raise ValueError("stages is empty: list at least one, e.g. - stage: train")
        return values

    def digest(self) -> str:
        """SHA-256 (hex) of every value: two runs with the same digest do the same."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


def _lines(node: yaml.Node | None, path: tuple[Any, ...] = ()) -> dict[tuple[Any, ...], int]:
    """Line number (from 1) of every key and item below a YAML node, by path."""
    found: dict[tuple[Any, ...], int] = {}
    if node is None:
        return found
    found[path] = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            found |= _lines(value, (*path, key.value))
            found[(*path, key.value)] = key.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            found |= _lines(item, (*path, number))
    return found


def _problems(error: ValidationError, where: str, lines: Mapping[tuple[Any, ...], int]) -> str:
    """One line that holds every error, with its line number and key."""
    kinds = set(STAGE_NAMES)
    parts = []
    nested = [p["loc"] for p in error.errors()]
    for problem in error.errors():
        loc = problem["loc"]
        if problem["type"] == "too_short" and any(len(n) > len(loc) and n[: len(loc)] == loc for n in nested):
            continue  # the list is only short because its items are wrong
        path = tuple(p for i, p in enumerate(problem["loc"]) if not (p in kinds and i == 2))
        known = next((lines[path[:n]] for n in range(len(path), -1, -1) if path[:n] in lines), None)
        place = f"line {known}, " if known is not None else ""
        key = ".".join(str(p) for p in path) or "recipe"
        text = problem["msg"].removeprefix("Value error, ").replace("Extra inputs are not permitted", "unknown key")
        given = problem.get("input")
        shown = f" (got {given!r})" if isinstance(given, (str, int, float)) and "'" not in text else ""
        parts.append(f"{place}{key}: {text}{shown}")
    return f"{where}: {len(parts)} error(s): " + "; ".join(parts)


def validate(values: Any, where: str, lines: Mapping[tuple[Any, ...], int] | None = None) -> Recipe:
    """The recipe in `values`. Raises one `UsageError` with all errors; `where` names the source."""
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise UsageError(_problems(error, where, lines or {})) from error


def read(path: Path, overrides: Mapping[str, str] | None = None) -> Recipe:
    """The recipe in the YAML file at `path`, with `overrides` (`{"stages.0.epochs": "3"}`) set over it."""
    try:
        text = path.read_text(encoding="utf-8")
        values, node = yaml.safe_load(text), yaml.compose(text, Loader=yaml.SafeLoader)
    except OSError as error:
        raise UsageError(f"recipe '{path}' cannot be read: {error.strerror}; give a .yaml file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"recipe '{path}' is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UsageError(f"recipe '{path}' holds no mapping: start with model: NAME")
    for key, text_value in (overrides or {}).items():
        _set(values, key, yaml.safe_load(text_value))
    return validate(values, str(path), _lines(node))


def _set(values: Any, key: str, value: Any) -> None:
    """Set `a.b.0.c` in nested mappings and lists, in place."""
    *path, last = key.split(".")
    try:
        for part in path:
            values = values[int(part)] if isinstance(values, list) else values.setdefault(part, {})
        if isinstance(values, list):
            values[int(last)] = value
        else:
            values[last] = value
    except (ValueError, IndexError, AttributeError, TypeError) as error:
        raise UsageError(f"--set {key}: no such place in the recipe; write keys and list positions, e.g. stages.0.epochs=3") from error


def parse_overrides(pairs: list[str]) -> dict[str, str]:
    """`["a.b=c"]` as `{"a.b": "c"}`. Raises `UsageError` without an equals sign."""
    found = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UsageError(f"--set '{pair}' has no value: write it like --set stages.0.epochs=3")
        found[key] = value
    return found


def to_yaml(recipe: Recipe, origins: Mapping[str, str] | None = None) -> str:
    """The recipe as YAML that `read` takes back, each value with its origin as a comment (default where `origins` is silent)."""
    origins = origins or {}
    lines = ["# edgecompress run resolved.yaml"]

    def emit(value: Any, path: str, indent: str, lead: str) -> None:
        if isinstance(value, dict):
            for number, (key, inner) in enumerate(value.items()):
                start = lead if number == 0 else indent
                where = f"{path}.{key}" if path else str(key)
                if isinstance(inner, (dict, list)) and inner:
                    lines.append(f"{start}{key}:")
                    emit(inner, where, indent + "  ", indent + "  ")
                else:
                    lines.append(f"{start}{key}: {_scalar(inner)}  # {origins.get(where, 'default')}")
        elif isinstance(value, list):
            for number, inner in enumerate(value):
                emit(inner, f"{path}.{number}", indent + "  ", indent + "- ")

    emit(_with_units(recipe.model_dump(mode="json")), "", "", "")
    return "\n".join(lines) + "\n"


def _with_units(values: dict[str, Any]) -> dict[str, Any]:
    """Sizes get their unit back, so that the file can be read again."""
    for stage in values["stages"]:
        targets = stage.get("targets")
        if targets and targets.get("bytes") is not None:
            targets["bytes"] = f"{targets['bytes']}B"
    return values


def _scalar(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6).strip()
    return text.removesuffix("...").strip()


def leaves(path: Path) -> list[str]:
    """Places (`stages.0.epochs`) of all values that the YAML file at `path` states."""

    def walk(value: Any, place: str) -> list[str]:
        if isinstance(value, dict):
            return [leaf for key, inner in value.items() for leaf in walk(inner, f"{place}.{key}" if place else str(key))]
        if isinstance(value, list):
            return [leaf for number, inner in enumerate(value) for leaf in walk(inner, f"{place}.{number}")]
        return [place]

    return walk(yaml.safe_load(path.read_text(encoding="utf-8")), "")
