"""How a lesson goes: what both ends have in common, how a student learns, how a network is cut."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TypedDict

import torch
from torch import nn

from edgecompress.data import DataSet, load_data
from edgecompress.data.preprocess import PIXELS
from edgecompress.errors import UnknownChoiceError, UsageError
from edgecompress.lesson.networks import LessonNetwork
from edgecompress.measure import machine
from edgecompress.methods.distill import DEFAULTS
from edgecompress.methods.features import KINDS
from edgecompress.run.context import TrainingContext
from edgecompress.run.sections import GradualSection
from edgecompress.stages.common import fp32_bytes
from edgecompress.stages.fields import usual_optimizer
from edgecompress.stages.gradual import GradualStage
from edgecompress.stages.gradual.work import AMOUNT_NOT_MET, Shrinking, plan_shrinking
from edgecompress.train.fit import FitResult, Hooks, label_loss
from edgecompress.train.init import has_norm
from edgecompress.train.settings import LARGE_SPLIT, FitSettings, default_settings

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Lesson:
    """What both ends have in common; None takes the defaults of network and data."""

    data: str = "digits"
    image_size: int | None = None
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    seed: int = 0
    threads: int | None = None

    def load(self, note: Callable[[str], None]) -> DataSet:
        """The data, of which `note` gets a line each; sets torch's threads too. Both ends read
        images of several sizes alike: at 224, unless `image_size` says otherwise. Raises
        `UsageError` for data or settings that no lesson can use.
        """
        torch.set_num_threads(self.threads or machine.threads())
        data = load_data(self.data, image_size=self.image_size)
        check_learnable(self, data)
        for line in (data.summary(), *data.notes):
            note(line)
        return data

    def begins_with(self, who: str) -> int:
        """The seed of the first weights of `who`: two students of one network shall not be the
        same.
        """
        return int.from_bytes(hashlib.sha256(f"{self.seed} {who}".encode()).digest()[:4], "little")

    def settings(self, learner: LessonNetwork, data: DataSet) -> FitSettings:
        """How to train."""
        model, normalised = learner.model, has_norm(learner.model)
        large = len(data.train) > LARGE_SPLIT
        optimizer = usual_optimizer(anew=learner.anew, normalised=normalised, large=large)
        chosen = default_settings(model, data, self.epochs, normalised, optimizer)
        if self.batch_size is not None:
            chosen = replace(chosen, batch_size=self.batch_size)
        if self.learning_rate is not None:
            chosen = replace(chosen, learning_rate=self.learning_rate)
        return replace(chosen, augmentation=data.augmentation, view_seed=self.seed)


@dataclass(frozen=True)
class Cutting:
    """How a network is pruned while it trains in a lesson: `amount` as in stage gradual (50%,
    2Mparams, 4MB), by cuts of `step` each.
    """

    amount: str
    step: float = 0.1
    schedule: str = "early"

    def plan(self, model: nn.Module, data: DataSet, settings: FitSettings, seed: int) -> Shrinking:
        """The cuts of a training with `settings` and `seed`. Raises `UsageError` for an amount that
        cannot be met.
        """
        asked = GradualStage.model_validate(
            {
                "amount": self.amount,
                "step": self.step,
                "schedule": self.schedule,
            }
        )
        context = TrainingContext(data, CPU, seed)
        in_fp32 = partial(fp32_bytes, data)
        return plan_shrinking(context, asked, model, label_loss, settings.epochs, in_fp32, Hooks())


@dataclass(frozen=True)
class Learning:
    """How a student learns from the teacher; None takes the loss's own defaults."""

    loss: str = "kl"
    temperature: float | None = None
    alpha: float | None = None
    features: str | None = None
    feature_weight: float | None = None
    mutual: bool = False
    staleness: int = 0
    cutting: Cutting | None = None

    def check(self, exchange: str) -> None:
        """Raises `UsageError` for an unknown way, or one that has no meaning beside another."""
        if self.loss not in DEFAULTS:
            raise UnknownChoiceError("--loss", self.loss, DEFAULTS)
        if self.mutual and (
            self.loss != "kl" or self.temperature is not None or self.alpha is not None
        ):
            raise UsageError(
                "--mutual has a loss of its own (cross-entropy + KL at T = 1): drop --loss, "
                "--temperature and --alpha"
            )
        if exchange != "features" and (
            self.features is not None or self.feature_weight is not None
        ):
            raise UsageError(
                "--features and --feature-weight belong to --exchange features: give that "
                "too, or drop them"
            )
        if self.features is not None and self.features not in KINDS:
            raise UnknownChoiceError("--features", self.features, KINDS)


def check_learnable(lesson: Lesson, data: DataSet) -> None:
    """Raises `UsageError` for data or settings that no lesson can use."""
    if data.task.metric != "accuracy":
        raise UsageError(
            f"data '{lesson.data}' is a regression ({data.task.metric}): what a lesson "
            "exchanges is about classes"
        )
    if data.preprocess.scale != PIXELS:
        raise UsageError(f"data '{lesson.data}' holds no images: a lesson is about images")
    if lesson.learning_rate is not None and not 0 < lesson.learning_rate < float("inf"):
        raise UsageError(f"--learning-rate {lesson.learning_rate}: give a number above 0")
    if lesson.epochs is not None and lesson.epochs < 1:
        raise UsageError(f"--epochs {lesson.epochs}: a lesson has at least 1")


class CutFacts(TypedDict, total=False):
    """What `result.json` has of a pruning; `floors_reached` where it missed its amount."""

    params_before: int
    gradual: GradualSection
    floors_reached: str


def cut_facts(cuts: Shrinking | None, result: FitResult | None, params: int) -> CutFacts:
    """What `result.json` has of a pruning; nothing without one."""
    if cuts is None or result is None:
        return {}
    facts: CutFacts = {"params_before": params, "gradual": cuts.report(result)}
    if not result.eligible:
        facts["floors_reached"] = AMOUNT_NOT_MET
    return facts
