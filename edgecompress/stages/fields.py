"""Values and settings that stages share. Texts with units become numbers when a recipe is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, model_validator

from edgecompress import units
from edgecompress.errors import UsageError
from edgecompress.run.stage import Stage


def recipe_only(default: Any = ..., **more: Any) -> Any:
    """A field that a recipe may give, and no option of the command line does."""
    return Field(default, json_schema_extra={"recipe_only": True}, **more)


def flag(name: str | tuple[str, ...], default: Any, **more: Any) -> Any:
    """A field whose option is called `name`, e.g. `--calibration`, and not after the field."""
    names: Any = [name] if isinstance(name, str) else list(name)
    return Field(default, json_schema_extra={"flags": names}, **more)


def _parsed_by(parse: Callable[[str], float]) -> Callable[[Any], Any]:
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
    return _parsed_by(units.parse_size)(value)


def _amount(value: Any) -> Any:
    """Checked, and kept as it was written."""
    if value is None or isinstance(value, bool):
        return value
    try:
        units.parse_amount(str(value))
    except UsageError as error:
        raise ValueError(str(error)) from error
    return str(value)


def _listed(value: Any) -> Any:
    """`a,b` as a list, since the command line has no lists."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


def _epochs(value: Any) -> Any:
    """`3,5,7` as a list of epochs; a word stays one."""
    parts = _listed(value)
    if isinstance(value, str) and all(part.isdigit() for part in parts):
        return [int(part) for part in parts]
    return value


Size = Annotated[
    int,
    BeforeValidator(_size),
    Field(gt=0),
    PlainSerializer(lambda size: f"{size}B", when_used="json"),
]
"""Bytes: `4MB`, `250KiB`."""
Count = Annotated[int, BeforeValidator(_parsed_by(units.parse_count)), Field(gt=0)]
"""A number of things: `10M`."""
Seconds = Annotated[float, BeforeValidator(_parsed_by(units.parse_duration)), Field(gt=0)]
"""A duration: `5ms`."""
Share = Annotated[float, BeforeValidator(_parsed_by(units.parse_share)), Field(ge=0, le=1)]
"""A share: `10%` or `0.1`."""
Amount = Annotated[str, BeforeValidator(_amount)]
"""`50%` of the parameters to remove, or what may be left: `2Mparams`, `10MMACs`, `4MB` (the fp32
file).
"""
Names = Annotated[tuple[str, ...], BeforeValidator(_listed)]
"""Names of layers; on the command line with commas between them."""
Schedule = Literal["early", "middle", "late"]
Epochs = Annotated[Schedule | tuple[int, ...], BeforeValidator(_epochs)]
"""When cuts are made: a word, or the epochs."""
Milestones = Annotated[tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(_epochs)]
"""Epochs; on the command line with commas between them."""
Quantize = Literal["auto", "int8", "int4", "int2", "mixed", "fp16", "none"]
Processor = Literal["any", "vnni", "no-vnni", "arm-dot"]
"""Where an int8 file will run."""
Criterion = Literal["l1", "l2", "bn", "taylor", "random"]


class Training(Stage):
    """How a stage trains. Values left out are chosen from the network and the data
    (`train.fit.default_settings`).
    """

    has_one_length: ClassVar[bool] = True
    """Do all trainings of this stage have `epochs` epochs?"""
    epochs: Annotated[int, Field(ge=0)] | None = None
    """Epochs; default: from network and data."""
    batch_size: Annotated[int, Field(ge=2)] | None = None
    """Images per step; default: 32, on large data 128."""
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Highest learning rate; default: from network and data."""
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    """Optimizer; sgd has momentum 0.9."""
    nesterov: bool = recipe_only(True)
    """With sgd: Nesterov's momentum, or the plain one."""
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    """Weight decay of all parameters."""
    lr_schedule: Literal["linear", "cosine", "constant", "multistep"] = "linear"
    """How the learning rate falls after the warm-up."""
    lr_milestones: Milestones = ()
    """With multistep: after these epochs the learning rate is multiplied by lr_gamma."""
    lr_gamma: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """With multistep: the factor of the learning rate at each milestone."""
    warmup: Share = recipe_only(0.15)
    """Share of the steps over which the learning rate rises."""
    clip: Annotated[float, Field(gt=0)] | None = recipe_only(1.0)
    """Largest norm of the gradient; null: unbounded."""
    patience: Annotated[int, Field(ge=1)] | None = None
    """Stop after so many epochs without a better one; the best epoch is kept in any case."""
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = recipe_only(None)
    """Probability of every dropout layer in this training; null: 0 for short runs on small data."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16: forward pass under autocast; auto: bf16 on GPUs that have it, else fp32."""
    flip: bool | None = recipe_only(None)
    """Augmentation: mirrored images; null: the data set's own."""
    shift: Annotated[int, Field(ge=0)] | None = recipe_only(None)
    """Augmentation: largest shift in pixels; null: the data set's own."""
    cutout: Annotated[int, Field(ge=0)] | None = recipe_only(None)
    """Augmentation: side of the erased square in pixels; null: the data set's own."""

    @model_validator(mode="before")
    @classmethod
    def _without_warmup(cls, values: Any) -> Any:
        """Published schedules of milestones have no warm-up."""
        if isinstance(values, dict) and values.get("lr_schedule") == "multistep":
            return {"warmup": 0.0, **values}
        return values

    @model_validator(mode="after")
    def _about_milestones(self) -> Training:
        """Milestones and multistep belong together, and lie within the training."""
        if (self.lr_schedule == "multistep") != bool(self.lr_milestones):
            raise ValueError(
                f"lr_schedule {self.lr_schedule} with milestones {list(self.lr_milestones)}: give "
                "both multistep and lr_milestones (epochs, like 100,150), or neither"
            )
        if self.lr_milestones and not self.has_one_length:
            raise ValueError(
                f"lr_milestones {list(self.lr_milestones)}: the trainings of this stage have "
                "different lengths; choose another lr_schedule"
            )
        if list(self.lr_milestones) != sorted(set(self.lr_milestones)):
            raise ValueError(
                f"lr_milestones {list(self.lr_milestones)}: give each epoch once, in rising order"
            )
        if self.lr_milestones and (self.epochs is None or self.lr_milestones[-1] >= self.epochs):
            length = "not given" if self.epochs is None else str(self.epochs)
            raise ValueError(
                f"lr_milestones {list(self.lr_milestones)} with epochs {length}: give epochs, and "
                "milestones before their end"
            )
        return self


class FromScratch(Training):
    """A network as it is built, or with given weights, and its training on the labels."""

    weights: str | None = None
    """imagenet, or a file of tensors to start from."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = recipe_only(0.1)
    """Share of each label that is spread over all classes."""
    train_last: Annotated[int, Field(ge=0)] | None = None
    """Transfer learning: train only the last so many convolutions and what follows them."""


class Distilled(Training):
    """A training on the logits of the teacher, if there is one."""

    temperature: Annotated[float, Field(gt=0)] = recipe_only(4.0)
    """Temperature of both softmaxes."""
    alpha: Annotated[float, Field(ge=0, le=1)] = recipe_only(0.7)
    """Weight of the teacher's loss; the labels have the rest."""
