"""Checks of a plan before anything is trained: against itself, and against the teacher."""

from __future__ import annotations

from edgecompress.data import DataSet
from edgecompress.data.images import Augmentation
from edgecompress.errors import UsageError
from edgecompress.online.codec import CODECS
from edgecompress.online.exchanges import REGISTRY, exchange_of
from edgecompress.online.plan import Plan, values_of
from edgecompress.train.settings import FitSettings


def check_options(plan: Plan) -> None:
    """Raises `UsageError` for a plan that contradicts itself."""
    if plan.exchange not in REGISTRY or plan.codec not in CODECS:
        raise UsageError(
            f"--exchange {plan.exchange} --codec {plan.codec}: allowed are "
            f"{', '.join(REGISTRY)}, and {', '.join(CODECS)}"
        )
    if plan.mutual and plan.exchange != "logits":
        raise UsageError(f"--mutual exchanges logits both ways: drop --exchange {plan.exchange}")
    if plan.staleness and not plan.mutual:
        raise UsageError("--staleness belongs to mutual learning: give --mutual too")
    if plan.features not in exchange_of(plan).feature_kinds:
        raise UsageError(
            f"--features '{plan.features}' with --exchange {plan.exchange}: exchange "
            "features takes attention or hint"
        )


def check_plan(plan: Plan, data: DataSet | None, classes: int, train: FitSettings | None) -> None:
    """Raises `UsageError` when a teacher with `classes` classes and these `data`, trained as
    `train` says, cannot follow `plan`.

    `train` is None for a frozen teacher, `data` None for one that receives all pixels.
    """
    check_options(plan)
    if plan.classes != classes:
        raise UsageError(
            f"the student has {plan.classes} classes, the teacher {classes}: give both the "
            "same --data"
        )
    if exchange_of(plan).needs_data and not _same_data(plan, data):
        raise UsageError(
            f"the student's data '{plan.data}' are not the teacher's: give both the same "
            "--data, or --exchange inputs"
        )
    if train is not None:
        _check_training(plan, train)
    elif plan.mutual:
        raise UsageError("mutual learning needs a teacher that trains: serve it with --train")


def _same_data(plan: Plan, data: DataSet | None) -> bool:
    return (
        data is not None and data.digest() == plan.data_digest and len(data.train) == plan.samples
    )


def _check_training(plan: Plan, train: FitSettings) -> None:
    """Raises `UsageError` when a teacher that trains cannot follow `plan`."""
    if not REGISTRY[plan.exchange].trainable:
        raise UsageError(
            f"--exchange {plan.exchange} needs a frozen teacher: use --exchange logits, or serve "
            "it without --train"
        )
    own = (
        train.epochs,
        train.batch_size,
        train.view_seed,
        values_of(train.augmentation or Augmentation()),
    )
    if own != (plan.epochs, plan.batch_size, plan.view_seed, plan.augmentation):
        requested = f"{plan.epochs} epochs, batches of {plan.batch_size}, seed {plan.view_seed}"
        raise UsageError(
            f"the student trains for {requested}, the teacher for {own[0]}, {own[1]}, "
            f"{own[2]}: give both the same"
        )
