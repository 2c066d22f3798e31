"""How a stage trains: settings from its recipe, network and data, in the time that is left."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from edgecompress.measure import machine
from edgecompress.models.own import runs_user_code
from edgecompress.run.context import Context, TrainingContext
from edgecompress.run.stage import RunSettings
from edgecompress.stages.fields import Training
from edgecompress.stages.scoring import on_validation
from edgecompress.train.fit import FitResult, Hooks, Loss, fit
from edgecompress.train.init import has_norm
from edgecompress.train.modes import evaluating, outputs_of
from edgecompress.train.settings import LARGE_SPLIT, FitSettings, default_settings

TRAINING_FIELDS = (
    "epochs",
    "batch_size",
    "learning_rate",
    "nesterov",
    "weight_decay",
    "norm_decay",
    "bias_rate",
    "warmup",
    "average",
    "dropout",
)
"""Fields of `Training` that `FitSettings` has under the same name; None takes the default."""


def fit_settings(
    context: TrainingContext,
    model: nn.Module,
    training: Training,
    epochs: int | None = None,
    views: int | None = None,
) -> FitSettings:
    """The recipe's training values over the defaults for this network and data.

    `epochs` is the default number of epochs, `views` that of augmented views per image.
    """
    normalised = has_norm(model)
    optimizer = training.optimizer_for(
        normalised=normalised,
        large=len(context.data.train) > LARGE_SPLIT,
        pretrained=isinstance(context, Context) and pretrained(context.recipe),
    )
    defaults = default_settings(model, context.data, epochs, normalised, optimizer)
    augmentation = replace(
        context.data.augmentation, **_given(training, ("flip", "shift", "cutout"))
    )
    return replace(
        defaults,
        **_given(training, TRAINING_FIELDS),
        precision=_precision(context, model, training),
        schedule=training.lr_schedule,
        milestones=training.lr_milestones,
        gamma=training.lr_gamma,
        clip=training.clip,
        augmentation=augmentation,
        view_seed=context.seed,
        views=views,
        elastic=training.epochs is None,
    )


def pretrained(recipe: RunSettings) -> bool:
    """May the network of `recipe` have learned before? The user's own code may bring weights."""
    given = any(getattr(stage, "weights", None) is not None for stage in recipe.stages)
    return given or any(map(runs_user_code, recipe.code_names()))


def _precision(context: TrainingContext, model: nn.Module, training: Training) -> str:
    """The precision that the recipe gives; `auto` on a processor that multiplies bfloat16 itself is
    bf16 for large data, where time decides, if the network runs in it.
    """
    large = len(context.data.train) > LARGE_SPLIT
    if training.precision == "auto" and context.device.type == "cpu" and large:
        return "bf16" if machine.has_bf16() and runs_in_bf16(model, context.example) else "fp32"
    return training.precision


def runs_in_bf16(model: nn.Module, example: Tensor) -> bool:
    """Can `model` compute its outputs for images like `example` (1, C, H, W), and their gradients,
    under autocast to bfloat16 on the CPU? Not every operator has a kernel. Nothing of it changes.
    """
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        with evaluating(model), torch.enable_grad(), torch.autocast("cpu", torch.bfloat16):
            outputs = outputs_of(model, example.repeat(2, 1, 1, 1))
        if learned:
            torch.autograd.grad(outputs.float().sum(), learned, allow_unused=True)
    except RuntimeError:
        return False
    return True


def _given(training: Training, names: tuple[str, ...]) -> dict[str, Any]:
    values = {name: getattr(training, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def train_model(
    context: Context,
    model: nn.Module,
    loss: Loss,
    settings: FitSettings,
    hooks: Hooks,
    seed: int | None = None,
    share: float = 1.0,
) -> FitResult:
    """Train `model` in place on the context's data and device; `seed` None takes the stage's. Where
    the run's time is bounded, it takes `share` of what the stage has left.

    Where no epoch was better than the network before it, that is said.
    """
    result = fit(
        model.to(context.device),
        context.data,
        loss,
        in_time(context, settings, share),
        seed=context.seed if seed is None else seed,
        device=context.device,
        hooks=hooks,
    )
    if result.initial is not None and result.best_epoch == 0:
        best = max((row.validation_accuracy for row in result.history), default=0.0)
        context.reporter.note(
            "no epoch was better than the network before (validation "
            f"{on_validation(context.data, result.initial.validation_accuracy)}, best epoch "
            f"{best:.2%}): it is kept"
        )
    return result


def in_time(context: Context, settings: FitSettings, share: float = 1.0) -> FitSettings:
    """The settings of a training for `share` of the time that the stage has left, where that is
    bounded and the number of epochs is open.
    """
    seconds = context.seconds_left(share) if settings.elastic else None
    return settings if seconds is None else replace(settings, time_s=seconds)
