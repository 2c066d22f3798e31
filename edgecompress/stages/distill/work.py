"""Learning from a teacher that is frozen, or that trains beside the student; and once more without,
for the comparison.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypedDict

from torch import nn

from edgecompress import checkpoint
from edgecompress.core.simplify import FoldedPool, find_pools, fold_pool
from edgecompress.export import onnx as onnx_export
from edgecompress.methods.distill import DEFAULTS, learning_from, mutual
from edgecompress.methods.features import FeatureLoss, default_pairs
from edgecompress.methods.sources import Peer
from edgecompress.methods.teacher import FixedTeacher
from edgecompress.models.students import SOURCE
from edgecompress.run.context import Context
from edgecompress.run.sections import DistillFacts, DistillSection
from edgecompress.run.stage import StageResult
from edgecompress.run.state import Control, StageRow, State
from edgecompress.stages.common import (
    count,
    fixed_teacher,
    input_spec,
    validation_accuracy,
    watched,
)
from edgecompress.stages.gradual import GradualStage
from edgecompress.stages.gradual.work import (
    AMOUNT_NOT_MET,
    Shrinking,
    seconds,
    shrinking,
    widths_now,
)
from edgecompress.stages.train.work import baseline_of, unfolded
from edgecompress.stages.training import fit_settings, in_time, train_model
from edgecompress.train.fit import FitResult, Hooks, Learner, fit_together, label_loss
from edgecompress.train.init import has_norm
from edgecompress.train.settings import LARGE_SPLIT, SMALL_PARAMS, FitSettings

if TYPE_CHECKING:
    from edgecompress.stages.distill import DistillStage

STUDENT, TEACHER = "student", "teacher"
"""The learners of a training of both."""


@dataclass(frozen=True)
class Learned:
    """What a training left: the state (with the rows of a teacher that trained too), the student's
    result, facts for the report, how the student was cut, and the targets that were missed.
    """

    state: State
    result: FitResult
    facts: DistillFacts
    cuts: Shrinking | None = None
    missed: tuple[str, ...] = ()


def distill(context: Context, settings: DistillStage, state: State) -> StageResult:
    """Train a copy of the network with the teacher's logits; nothing where a plan was made and
    nothing was pruned.
    """
    if state.plan is not None and not state.plan.prune:
        return StageResult(state)
    model, folds = _student(context, settings, state)
    usual = settings.usual_epochs(
        None, large=len(context.data.train) > LARGE_SPLIT, small=count(model) < SMALL_PARAMS
    )
    chosen = fit_settings(context, model, settings, usual, settings.views)
    if not chosen.epochs:
        return StageResult(state)
    if settings.control:
        state = _with_control(context, settings, state, copy.deepcopy(model), folds, chosen)
    learn = _offline if settings.mode == "offline" else _together
    learned = learn(context, settings, state, model, chosen)

    small = unfolded(learned.result.model.cpu(), folds)
    accuracy = validation_accuracy(context, small)
    row = StageRow("distill", accuracy, count(small), wall_s=seconds(learned.result))
    state = learned.state.with_model(small.cpu()).with_history("distill", learned.result)
    state = state.with_row(row).with_section(
        "distill", _section(context, settings, state, small, learned)
    )
    return _with_cuts(context, state, small, learned)


def _student(
    context: Context, settings: DistillStage, state: State
) -> tuple[nn.Module, list[FoldedPool]]:
    """A copy of the model to train, on the device, and the pools that were folded for it.

    A network that is cut while it trains keeps its pools: its channels are counted as delivered.
    """
    model = copy.deepcopy(state.need_model())
    folds: list[FoldedPool] = []
    if settings.prune_student is None:
        model, folds = folded(context, model)
    return model.to(context.device), folds


def _offline(
    context: Context, settings: DistillStage, state: State, model: nn.Module, chosen: FitSettings
) -> Learned:
    """Learn from a teacher that must be the same afterwards, or from the labels without one."""
    if state.teacher is None:
        hooks = watched(context, "train", settings.patience, keep_initial=True)
        return Learned(state, train_model(context, model, label_loss, chosen, hooks), {})
    teacher = fixed_teacher(context, state, chosen, settings.temperature, settings.top_k)
    loss = learning_from(teacher, settings.loss, settings.temperature, settings.alpha)
    cuts = _cutting(context, settings, settings.prune_student, model, chosen, STUDENT)
    hooks = watched(context, "distill", settings.patience, keep_initial=True)
    if cuts is not None:
        hooks = cuts.hooks
    facts: DistillFacts = {}
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
            "feature_layers": dict(pairs),
            "feature_weight": settings.feature_weight,
        }
    result = train_model(context, model, loss, chosen, hooks)
    facts["teacher_digest"] = teacher.untouched()
    facts["tables_computed"] = teacher.computed
    facts["tables_read"] = teacher.read
    return Learned(state, result, facts, cuts)


def _pairs(
    context: Context,
    settings: DistillStage,
    state: State,
    model: nn.Module,
    teacher: FixedTeacher,
) -> dict[str, str]:
    """{student's convolution: teacher's}: those of the recipe, or the defaults."""
    if settings.feature_layers is not None:
        return settings.feature_layers
    theirs = context.reading_as(state.need_teacher().preprocess).example
    return default_pairs(model, teacher.model, context.example, theirs)


def _together(
    context: Context, settings: DistillStage, state: State, model: nn.Module, chosen: FitSettings
) -> Learned:
    """Train student and teacher on the same batches, each of which goes once through both."""
    network = state.need_teacher()
    teacher, folds = copy.deepcopy(network.module), list[FoldedPool]()
    if settings.prune_teacher is None:
        teacher, folds = folded(context, teacher)
    models = {STUDENT: model, TEACHER: teacher.to(context.device)}
    amounts = {STUDENT: settings.prune_student, TEACHER: settings.prune_teacher}
    cuts = {
        name: _cutting(context, settings, amounts[name], models[name], chosen, name)
        for name in models
    }
    learners = _learners(context, settings, models, cuts, chosen)
    learners = {
        name: replace(one, settings=in_time(context, one.settings))
        for name, one in learners.items()
    }
    results = fit_together(learners, context.data, seed=context.seed, device=context.device)

    taught = unfolded(results[TEACHER].model.cpu(), folds)
    accuracy = validation_accuracy(context, taught)
    row = StageRow(
        "teacher, trained beside", accuracy, count(taught), wall_s=seconds(results[TEACHER])
    )
    state = replace(
        state,
        teacher=replace(network, module=taught.cpu()),
        baseline=baseline_of(context, taught, accuracy),
    )
    state = state.with_history(TEACHER, results[TEACHER]).with_row(row)
    facts: DistillFacts = {"teacher_validation_accuracy": accuracy}
    own_cuts, missed = cuts[TEACHER], tuple[str, ...]()
    if own_cuts is not None:
        facts["teacher_cuts"] = own_cuts.report(results[TEACHER])
        missed = () if results[TEACHER].eligible else (f"teacher: {AMOUNT_NOT_MET}",)
    return Learned(state, results[STUDENT], facts, cuts[STUDENT], missed)


def _learners(
    context: Context,
    settings: DistillStage,
    models: dict[str, nn.Module],
    cuts: dict[str, Shrinking | None],
    chosen: FitSettings,
) -> dict[str, Learner]:
    """Student and teacher with their losses, settings and hooks."""
    from_teacher = learning_from(Peer(TEACHER), settings.loss, settings.temperature, settings.alpha)
    losses = {TEACHER: label_loss, STUDENT: from_teacher}
    if settings.mode == "mutual":
        losses = {TEACHER: mutual([Peer(STUDENT)]), STUDENT: mutual([Peer(TEACHER)])}
    bar = context.progress(f"distil {settings.mode}")
    learners = {}
    for name, network in models.items():
        hooks = _hooks(context, cuts[name], name, settings.patience)
        hooks = replace(hooks, on_step=bar if name == STUDENT else None)
        own = chosen
        if name == TEACHER:
            own = fit_settings(context, network, settings, chosen.epochs, settings.views)
        learners[name] = Learner(network, losses[name], own, hooks)
    return learners


def _hooks(context: Context, cuts: Shrinking | None, text: str, patience: int | None) -> Hooks:
    return watched(context, text, patience) if cuts is None else cuts.hooks


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
    requested = GradualStage(
        amount=amount,
        step=settings.step,
        schedule=settings.schedule,
        patience=settings.patience,
    )
    text = f"distil and prune the {name}"
    return shrinking(context, requested, model, label_loss, chosen.epochs, text)


def _with_cuts(context: Context, state: State, small: nn.Module, learned: Learned) -> StageResult:
    """The result of the stage, with what the cuts of the student did."""
    if learned.cuts is None:
        return StageResult(state, missed=learned.missed)
    widths = widths_now(context, state, small, learned.cuts.before)
    state = replace(state, widths=widths)
    state = state.with_section("gradual", learned.cuts.report(learned.result))
    own = () if learned.result.eligible else (f"student: {AMOUNT_NOT_MET}",)
    return StageResult(state, missed=(*own, *learned.missed))


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
    result = train_model(context, model, label_loss, chosen, hooks, share=0.5)
    plain = unfolded(result.model.cpu(), folds)
    accuracy = validation_accuracy(context, plain)
    plain = plain.cpu()
    path = context.folder / "control.onnx"
    metadata = input_spec(context).metadata()
    onnx_export.save(onnx_export.to_onnx(plain, context.example, metadata), path)
    notes = checkpoint.notes_for(context.data)
    checkpoint.save(context.folder / "control.safetensors", plain, state.source, notes)
    row = StageRow("control (no teacher)", accuracy, count(plain), wall_s=seconds(result))
    onnx = str(path.relative_to(context.run.root))
    control = Control(accuracy, count(plain), chosen.epochs, onnx)
    return replace(state.with_history("control", result).with_row(row), control=control)


def _section(
    context: Context, settings: DistillStage, state: State, small: nn.Module, learned: Learned
) -> DistillSection:
    """How the student learned, from which teacher, and what it reached, before any lossless
    step.
    """
    taught = state.teacher is not None
    own_loss = "mutual" if settings.mode == "mutual" else settings.loss
    section: DistillSection = {
        "mode": settings.mode,
        "loss": own_loss if taught else "cross-entropy on the labels, no teacher",
        **_mixture(settings, mixed=taught and settings.mode != "mutual"),
        "teacher": _teacher_name(state),
        "top_k": settings.top_k,
        "epochs": len(learned.result.history),
        "chosen_epoch": learned.result.best_epoch,
        "params": count(small),
        "weights_bytes": 4 * count(small),
        "validation_accuracy": learned.result.best.validation_accuracy,
        **learned.facts,
    }
    if context.recipe.model in SOURCE:
        section["source"] = SOURCE[context.recipe.model]
    return section


class _Mixture(TypedDict):
    temperature: float | None
    alpha: float | None


def _mixture(settings: DistillStage, *, mixed: bool) -> _Mixture:
    """Temperature and weight of the teacher's loss, where it is mixed with the labels'."""
    if not mixed:
        return {"temperature": None, "alpha": None}
    temperature, alpha = DEFAULTS[settings.loss]
    return {
        "temperature": settings.temperature or temperature,
        "alpha": alpha if settings.alpha is None else settings.alpha,
    }


def _teacher_name(state: State) -> str | None:
    """The model of a teacher that the recipe brought."""
    if state.teacher is None or not state.teacher_given:
        return None
    return state.teacher.source.name


def folded(context: Context, model: nn.Module) -> tuple[nn.Module, list[FoldedPool]]:
    """A plain network in the coordinates in which it trains well (`stages.train.work.start`), and
    the pools that were folded for it.
    """
    folds = [] if has_norm(model) else find_pools(model.cpu(), context.example)
    for fold in folds:
        model = fold_pool(model, fold)
    return model, folds
