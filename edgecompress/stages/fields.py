"""Values and settings that stages share."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from edgecompress.run.stage import Stage, Strict
from edgecompress.run.values import Above0, Natural, Share

if TYPE_CHECKING:
    from edgecompress.run.state import State


def recipe_only(default: Any = ..., **more: Any) -> Any:
    """A field that a recipe may give, and no option of the command line does."""
    return Field(default, json_schema_extra={"recipe_only": True}, **more)


def flag(name: str | tuple[str, ...], default: Any, **more: Any) -> Any:
    """A field whose option is called `name`, e.g. `--calibration`, and not after the field."""
    names: Any = [name] if isinstance(name, str) else list(name)
    return Field(default, json_schema_extra={"flags": names}, **more)


def like(settings: type[Strict], name: str) -> Any:
    """A field that says of itself what the field `name` of other settings does: its default, help,
    choices and option. Its annotation must be the same.
    """
    return copy(settings.model_fields[name])


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


def _flip(value: Any) -> Any:
    """`true` and `false` as they are, since the command line has text."""
    known = {"true": True, "false": False, "alternate": "alternate"}
    if isinstance(value, str) and value not in known:
        raise ValueError(f"'{value}' is no way to flip: give alternate, true or false")
    return known[value] if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_listed)]
"""Names of layers; on the command line with commas between them."""
BatchSize = Annotated[int, Field(ge=2)]
"""Images per step; BatchNorm needs two."""
Loss = Literal["kl", "softmax-mse", "dkd"]
"""How logits are learned from."""
Maps = Literal["hint", "attention"]
"""How feature maps are compared."""
Weight = Annotated[float, Field(ge=0, le=1)]
"""The part of a loss in a sum of two."""
Schedule = Literal["early", "middle", "late"]
Epochs = Annotated[Schedule | tuple[int, ...], BeforeValidator(_epochs)]
"""When cuts are made: a word, or the epochs."""
Milestones = Annotated[tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(_epochs)]
"""Epochs; on the command line with commas between them."""
Quantize = Literal["auto", "int8", "int4", "int2", "mixed", "fp16", "none"]
Processor = Literal["any", "vnni", "no-vnni", "arm-dot"]
"""Where an int8 file will run."""
Criterion = Literal["l1", "l2", "bn", "taylor", "random"]


def usual_optimizer(*, anew: bool, normalised: bool, large: bool) -> str:
    """SGD for a network with normalisation that learns `anew` on large data, AdamW for all others.
    Measured there, ResNet-8 after 10 epochs: SGD at 0.1 is as good as AdamW at 0.005, and 8 points
    better than AdamW at the rate of short runs.
    """
    return "sgd" if anew and normalised and large else "adamw"


class Training(Stage):
    """How a stage trains. Values left out are chosen from the network and the data
    (`train.fit.default_settings`).
    """

    has_one_length: ClassVar[bool] = True
    """Do all trainings of this stage have `epochs` epochs?"""
    learns_anew: ClassVar[bool] = False
    """Is its network new, or cut so far that it learns like one?"""
    trains_one_network: ClassVar[bool] = False
    """Does it train the recipe's network, or a smaller one of its class, and no other?"""
    share_of_time: ClassVar[float] = 0.0
    """The part of a run's time for its training; 0: its epochs cannot be fitted to a time."""
    epochs: Natural | None = None
    """Epochs; default: from network and data."""
    batch_size: BatchSize | None = None
    """Images per step; default: 32, on large data 128."""
    learning_rate: Above0 | None = None
    """Highest learning rate; default: from network and data."""
    optimizer: Literal["adamw", "adam", "sgd"] | None = None
    """Optimizer; sgd has momentum 0.9; default: from network and data."""
    nesterov: bool = recipe_only(True)
    """With sgd: Nesterov's momentum, or the plain one."""
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    """Weight decay."""
    norm_decay: bool = True
    """Weight decay of biases and normalisations too."""
    bias_rate: Annotated[float, Field(gt=0)] = 1.0
    """Learning rate of biases, as a factor of the others'."""
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
    average: Annotated[Share, Field(lt=1)] = 0.0
    """Validate and keep an exponential average of the weights, whose time constant is this share of
    the steps; 0: the last weights.
    """
    patience: Annotated[int, Field(ge=1)] | None = None
    """Stop after so many epochs without a better one; the best epoch is kept in any case."""
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = recipe_only(None)
    """Probability of every dropout layer in this training; null: 0 for short runs on small data."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16: forward pass under autocast; auto: bf16 on GPUs that have it, and for large data on
    processors that do, else fp32.
    """
    flip: Annotated[Literal["alternate"] | bool | None, BeforeValidator(_flip)] = None
    """Augmentation: mirrored images, true, false, or alternate: mirrored in one of every two
    epochs; default: the data set's own.
    """
    shift: Annotated[int, Field(ge=0)] | None = None
    """Augmentation: largest shift in pixels; default: the data set's own."""
    cutout: Annotated[int, Field(ge=0)] | None = None
    """Augmentation: side of the erased square in pixels; default: the data set's own."""

    def optimizer_for(self, *, normalised: bool, large: bool, pretrained: bool) -> str:
        """The optimizer that was given, or the usual one."""
        anew = self.learns_anew and not pretrained
        return self.optimizer or usual_optimizer(anew=anew, normalised=normalised, large=large)

    def usual_epochs(self, own: int | None, *, large: bool, small: bool | None) -> int | None:
        """Epochs where none are given, as far as that is known: `own` is the default for
        the network and the data, which are `large`; will the network be `small`? None: unknown.
        """
        return None

    def fits_time(self) -> bool:
        """Can its epochs be fitted to a time?"""
        return self.share_of_time > 0

    def time_share(self, state: State) -> float:
        """Its share, where its epochs are open."""
        return self.share_of_time if self.epochs is None else 0.0

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

    learns_anew = True
    share_of_time = 9.0

    weights: str | None = None
    """imagenet, or a file of tensors to start from."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of each label that is spread over all classes."""
    train_last: Annotated[int, Field(ge=0)] | None = None
    """Transfer learning: train only the last so many convolutions and what follows them."""


class Distilled(Training):
    """A training on the logits of the teacher, if there is one."""

    temperature: Annotated[float, Field(gt=0)] = recipe_only(4.0)
    """Temperature of both softmaxes."""
    alpha: Annotated[float, Field(ge=0, le=1)] = recipe_only(0.7)
    """Weight of the teacher's loss; the labels have the rest."""
