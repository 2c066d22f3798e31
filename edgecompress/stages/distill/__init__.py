"""Stage `distill`: the network learns from a teacher that is frozen, or that trains beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from edgecompress.run.stage import Setup, StageResult
from edgecompress.run.values import Above0, Amount, Share
from edgecompress.stages.fields import Loss, Maps, Schedule, Training, Weight, recipe_only

if TYPE_CHECKING:
    from torch import nn

    from edgecompress.run.context import Context
    from edgecompress.run.state import State

ABOUT_A_TEACHER = (
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
"""Settings that mean nothing without a teacher."""


class DistillStage(Training):
    """Train the network on the teacher's logits, or on the labels when there is no teacher.

    `offline`: the teacher is frozen, and its logits of each view of the images are computed once
    and cached. `online`: it trains on the labels at the same time, each batch going once through
    both. `mutual`: each also learns from the other (Zhang et al. 2018).
    """

    stage: Literal["distill"] = "distill"
    trains_one_network = True
    learns_anew = True
    share_of_time = 5.0
    mode: Literal["offline", "online", "mutual"] = "offline"
    """offline: frozen teacher; online: it trains too; mutual: each learns from the other."""
    loss: Loss = "kl"
    """Distillation loss."""
    temperature: Above0 | None = None
    """Temperature of both softmaxes; default: 4, for softmax-mse 5."""
    alpha: Weight | None = None
    """Weight of the teacher's loss, the labels have the rest; default: kl 0.7, softmax-mse 1, dkd
    0.5.
    """
    top_k: Annotated[int, Field(ge=1)] | None = None
    """Keep only so many of the teacher's logits (loss kl, mode offline)."""
    views: Annotated[int, Field(ge=1)] | None = None
    """Augmented views per image that the epochs go through in turn; default: a new one per
    epoch.
    """
    features: Maps | None = None
    """Learn from the teacher's feature maps too."""
    feature_layers: dict[str, str] | None = recipe_only(None)
    """{student's convolution: teacher's}; null pairs the last ones before each change of size."""
    feature_weight: Annotated[float, Field(gt=0)] = recipe_only(1.0)
    """Weight of the loss on the maps."""
    control: bool = False
    """Train the same student once more without the teacher; both are reported."""
    prune_student: Amount | None = None
    """Cut the student while it trains: 50%, 2Mparams, 4MB."""
    prune_teacher: Amount | None = None
    """Cut the teacher while it trains (modes online and mutual)."""
    step: Share = 0.1
    """Share of channels that one cut removes."""
    schedule: Schedule = "early"
    """When cuts are made."""

    def usual_epochs(self, own: int | None, *, large: bool, small: bool | None) -> int | None:
        """A small network learns slower, and costs less per epoch."""
        if large:
            return 20
        return None if small is None else 12 if small else 4

    def fits_time(self) -> bool:
        """Cuts are planned for a number of epochs."""
        return self.prune_student is None and self.prune_teacher is None

    def time_share(self, state: State) -> float:
        """None where a plan was made, and nothing is cut."""
        idle = state.plan is not None and not state.plan.prune
        return 0.0 if idle else super().time_share(state)

    def teacher_settings(self) -> list[str]:
        """How to learn from a teacher, where that is given."""
        return self.given(*ABOUT_A_TEACHER)

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
        mixed = self.loss != "kl" or self.temperature is not None or self.alpha is not None
        if self.mode == "mutual" and mixed:
            raise ValueError(
                "mode mutual has a loss of its own (cross-entropy + KL at T = 1): drop loss, "
                "temperature and alpha"
            )
        return self

    def check(self, setup: Setup) -> Setup:
        """A teacher that trains must read the same images."""
        teacher, data = setup.teacher, setup.data
        if self.mode != "offline" and teacher and teacher.preprocess != data.preprocess:
            from edgecompress.errors import UsageError

            raise UsageError(
                f"mode {self.mode} gives teacher and student the same images, but the teacher "
                f"reads {teacher.preprocess.as_dict()} and the student "
                f"{data.preprocess.as_dict()}: give the --image-size and --normalize that the "
                "teacher was trained with"
            )
        return setup

    def check_network(self, setup: Setup, blank: nn.Module) -> None:
        """Student and teacher must have the convolutions that are paired."""
        from edgecompress.stages.checkpoints import check_feature_layers

        check_feature_layers(self.feature_layers or {}, blank, setup.teacher)

    def run(self, context: Context, state: State) -> StageResult:
        """The trained network; nothing changes where a plan was made and nothing was pruned."""
        from edgecompress.stages.distill.work import distill

        return distill(context, self, state)
