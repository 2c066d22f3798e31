"""Stage `distill`: the network learns from a teacher that is fixed, or that trains beside it; and
once more without, for the comparison.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from edgecompress import checkpoint
from edgecompress.core.simplify import FoldedPool, find_pools, fold_pool
from edgecompress.errors import UsageError
from edgecompress.export import onnx as onnx_export
from edgecompress.methods.distill import DEFAULTS, learning_from, mutual, peer
from edgecompress.methods.features import FeatureLoss, default_pairs
from edgecompress.methods.teacher import FixedTeacher
from edgecompress.models.students import SOURCE
from edgecompress.pipeline import Context, State
from edgecompress.settings import DistillStage, GradualStage
from edgecompress.stages.common import (
    count,
    fit_settings,
    fixed_teacher,
    input_spec,
    learning_loss,
    validation_accuracy,
    watched,
    with_history,
    with_row,
)
from edgecompress.stages.gradual import UNMET, Shrinking, fresh, seconds, shrinking, widths_now
from edgecompress.stages.teacher import described, unfolded
from edgecompress.train.fit import FitResult, Learner, fit, fit_together, label_loss
from edgecompress.train.init import has_norm
from edgecompress.train.settings import SMALL_PARAMS, FitSettings

STUDENT, TEACHER = "student", "teacher"


def distill(context: Context, settings: DistillStage, state: State) -> State:
    """Train the network on what the teacher says; nothing where a plan was made and nothing was
    pruned.
    """
    planned = state.numbers.get("plan")
    if planned is not None and not planned["prune"]:
        return state
    whole = (
        settings.prune_student is not None
    )  # a cut counts the channels of the network that is delivered
    model, folds = (state.need_model(), []) if whole else folded(context, state.need_model())
    model.to(context.device)
    chosen = fit_settings(context, model, settings, epochs=distill_epochs(context, model))
    if not chosen.epochs:
        return state
    if settings.control:
        state = _with_control(context, settings, state, copy.deepcopy(model), folds, chosen)
    learn = _offline if settings.mode == "offline" else _together
    learned = learn(context, settings, state, model, chosen)
    small = unfolded(learned.result.model.cpu(), folds)
    accuracy = validation_accuracy(context, small)
    state = with_history(replace(learned.state, model=fresh(small)), "distill", learned.result)
    state = with_row(state, "distill", accuracy, count(small), wall_s=seconds(learned.result))
    return _with_cuts(context, _reported(context, settings, state, small, learned), learned)


@dataclass(frozen=True)
class Learned:
    """What a training left: the state (with the rows of a teacher that trained too), the student's
    result, facts for the report.
    """

    state: State
    result: FitResult
    facts: dict[str, Any]
    cuts: Shrinking | None = None


def _offline(
    context: Context, settings: DistillStage, state: State, model: nn.Module, chosen: FitSettings
) -> Learned:
    """Learn from a teacher that must be the same afterwards."""
    if state.teacher is None:
        hooks = watched(context, "train", settings.patience)
        loss = learning_loss(context, state, settings, chosen)
        return Learned(
            state,
            fit(
                model,
                context.data,
                loss,
                chosen,
                seed=context.seed,
                device=context.device,
                hooks=hooks,
            ),
            {},
        )
    teacher = fixed_teacher(context, state, chosen, settings)
    loss = learning_from(teacher, settings.loss, settings.temperature, settings.alpha)
    cuts = _cutting(context, settings, settings.prune_student, model, chosen, STUDENT)
    hooks = cuts.hooks if cuts is not None else watched(context, "distill", settings.patience)
    facts: dict[str, Any] = {}
    if settings.features is not None:
        pairs = _pairs(context, settings, state, model, teacher)
        companion = FeatureLoss.of_pairs(
            settings.features,
            pairs,
            model,
            teacher.model,
            teacher.preprocess,
            loss,
            settings.feature_weight,
        )
        loss, hooks = companion, replace(hooks, companion=companion)
        facts = {
            "features": settings.features,
            "feature_layers": pairs,
            "feature_weight": settings.feature_weight,
        }
    result = fit(
        model, context.data, loss, chosen, seed=context.seed, device=context.device, hooks=hooks
    )
    facts |= {
        "teacher_digest": teacher.untouched(),
        "tables_computed": teacher.computed,
        "tables_read": teacher.read,
    }
    return Learned(state, result, facts, cuts)


def _pairs(
    context: Context, settings: DistillStage, state: State, model: nn.Module, teacher: FixedTeacher
) -> dict[str, str]:
    if settings.feature_layers is not None:
        return settings.feature_layers
    return default_pairs(
        model, teacher.model, context.example, context.as_read_by(state.mentor).example
    )


def _together(
    context: Context, settings: DistillStage, state: State, model: nn.Module, chosen: FitSettings
) -> Learned:
    """Train student and teacher on the same batches, each of which goes once through both."""
    if state.teacher is None:
        raise UsageError(f"mode {settings.mode} needs a teacher: put a stage teacher before it")
    teacher, folds = copy.deepcopy(state.teacher), list[FoldedPool]()
    if settings.prune_teacher is None:
        teacher, folds = folded(context, teacher)
    teacher.to(context.device)
    losses = {
        TEACHER: label_loss,
        STUDENT: learning_from(peer(TEACHER), settings.loss, settings.temperature, settings.alpha),
    }
    if settings.mode == "mutual":
        losses = {TEACHER: mutual(STUDENT), STUDENT: mutual(TEACHER)}
    models, amounts = (
        {STUDENT: model, TEACHER: teacher},
        {STUDENT: settings.prune_student, TEACHER: settings.prune_teacher},
    )
    cuts = {
        name: _cutting(context, settings, amounts[name], models[name], chosen, name)
        for name in models
    }
    bar = context.progress(f"distil {settings.mode}")
    learners = {}
    for name, network in models.items():
        planned = cuts[name]
        hooks = planned.hooks if planned is not None else watched(context, name, settings.patience)
        hooks = replace(hooks, on_step=bar if name == STUDENT else None)
        own = fit_settings(context, network, settings, epochs=chosen.epochs)
        learners[name] = Learner(network, losses[name], own if name == TEACHER else chosen, hooks)
    results = fit_together(learners, context.data, seed=context.seed, device=context.device)
    taught = unfolded(results[TEACHER].model.cpu(), folds)
    accuracy = validation_accuracy(context, taught)
    state = with_history(replace(state, teacher=fresh(taught)), TEACHER, results[TEACHER])
    state = with_row(
        state, "teacher, trained beside", accuracy, count(taught), wall_s=seconds(results[TEACHER])
    )
    facts: dict[str, Any] = {"teacher_validation_accuracy": accuracy}
    told = cuts[TEACHER]
    if told is not None:
        facts["teacher_cuts"] = told.report(results[TEACHER])
        if not results[TEACHER].eligible:
            state = state.with_numbers(floors_reached=f"teacher: {UNMET}")
    state = state.with_numbers(teacher=described(context, taught, accuracy))
    return Learned(state, results[STUDENT], facts, cuts[STUDENT])


def _cutting(
    context: Context,
    settings: DistillStage,
    amount: str | None,
    model: nn.Module,
    chosen: FitSettings,
    name: str,
) -> Shrinking | None:
    """The cuts of a network that is pruned while it trains; channels are scored by magnitude."""
    if amount is None:
        return None
    asked = GradualStage(
        stage="gradual",
        amount=amount,
        step=settings.step,
        schedule=settings.schedule,
        patience=settings.patience,
    )
    return shrinking(
        context, asked, model, label_loss, chosen.epochs, f"distil and prune the {name}"
    )


def _with_cuts(context: Context, state: State, learned: Learned) -> State:
    """The state with what the cuts of the student did."""
    if learned.cuts is None:
        return state
    widths = widths_now(context, state, state.need_model(), learned.cuts.before)
    numbers: dict[str, Any] = {"gradual": learned.cuts.report(learned.result), "widths": widths}
    if not learned.result.eligible:
        earlier = state.numbers.get("floors_reached")
        numbers["floors_reached"] = f"student: {UNMET}" + (f"; {earlier}" if earlier else "")
    return state.with_numbers(**numbers)


def _with_control(
    context: Context,
    settings: DistillStage,
    state: State,
    model: nn.Module,
    folds: list[FoldedPool],
    chosen: FitSettings,
) -> State:
    """The state with the same student, trained for the same epochs on the labels alone."""
    hooks = watched(context, "train without the teacher", settings.patience)
    result = fit(
        model,
        context.data,
        label_loss,
        chosen,
        seed=context.seed,
        device=context.device,
        hooks=hooks,
    )
    plain = unfolded(model.cpu(), folds)
    accuracy = validation_accuracy(context, plain)
    path = context.folder / "control.onnx"
    onnx_export.save(
        onnx_export.to_onnx(plain.cpu(), context.example, input_spec(context).metadata()), path
    )
    checkpoint.save(
        context.folder / "control.safetensors",
        plain,
        state.source,
        checkpoint.notes_for(context.data),
    )
    state = with_history(state, "control", result)
    state = with_row(state, "control (no teacher)", accuracy, count(plain), wall_s=seconds(result))
    control = {
        "validation_accuracy": accuracy,
        "params": count(plain),
        "epochs": chosen.epochs,
        "onnx": str(path.relative_to(context.run.root)),
    }
    return state.with_numbers(control=control)


def _reported(
    context: Context, settings: DistillStage, state: State, small: nn.Module, learned: Learned
) -> State:
    """The state with `numbers["distill"]`: how, from whom, and what it came to, before any lossless
    step.
    """
    temperature, alpha = DEFAULTS[settings.loss]
    loss = "mutual" if settings.mode == "mutual" else settings.loss
    mixed = state.teacher is not None and settings.mode != "mutual"
    report: dict[str, Any] = {
        "mode": settings.mode,
        "loss": loss if state.teacher is not None else "cross-entropy on the labels, no teacher",
        "temperature": (settings.temperature or temperature) if mixed else None,
        "alpha": (alpha if settings.alpha is None else settings.alpha) if mixed else None,
        "teacher": None if state.mentor is None else state.mentor.source.name,
        "top_k": settings.top_k,
        "epochs": len(learned.result.history),
        "chosen_epoch": learned.result.best_epoch,
        "params": count(small),
        "weights_bytes": 4 * count(small),
        "validation_accuracy": learned.result.best.validation_accuracy,
        **learned.facts,
    }
    if context.recipe.model in SOURCE:
        report["source"] = SOURCE[context.recipe.model]
    return state.with_numbers(distill=report)


def folded(context: Context, model: nn.Module) -> tuple[nn.Module, list[FoldedPool]]:
    """A plain network in the coordinates in which it trains well (`stages.teacher.start`), and the
    pools that were folded for it.
    """
    folds = [] if has_norm(model) else find_pools(model.cpu(), context.example)
    for fold in folds:
        model = fold_pool(model, fold)
    return model, folds


def distill_epochs(context: Context, model: nn.Module) -> int:
    """Epochs of distillation when nobody says: a small network learns slower and costs less an
    epoch.
    """
    if len(context.data.train) > 10_000:
        return 20
    return 4 if count(model) >= SMALL_PARAMS else 12
