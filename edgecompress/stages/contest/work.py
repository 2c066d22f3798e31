"""Short trainings of one network in several formats, each cut to the same bytes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from torch import nn

from edgecompress.core import ChannelGraph, shrink
from edgecompress.core.proof import trace
from edgecompress.data import DataSet
from edgecompress.formats import FORMATS, bits_by_layer
from edgecompress.methods.qat import QuantAware
from edgecompress.methods.repair import repaired
from edgecompress.methods.scores import Scores
from edgecompress.proportions import interval
from edgecompress.run.context import Context
from edgecompress.run.sections import ContestRow, ContestSection
from edgecompress.run.state import SizePlan, State
from edgecompress.stages.budgets import Chooser, budgets_of
from edgecompress.stages.common import against, count, learning_loss, validation_accuracy
from edgecompress.stages.halving import Rounds, winner
from edgecompress.stages.prune.work import repair_images, score
from edgecompress.stages.qat.work import STEPS, on_grid
from edgecompress.stages.scoring import on_validation
from edgecompress.stages.training import fit_settings
from edgecompress.train.fit import Loss
from edgecompress.train.settings import LARGE_SPLIT, FitSettings

if TYPE_CHECKING:
    from edgecompress.stages.contest import ContestStage

SHARE = 6
"""The first round has so small a part of the epochs of a complete training."""
WHOLE_LARGE = 12
"""Epochs of a complete training on large data, of which a contest sees a part of the images."""
NEAR = 0.005
"""Of a regression: where the wider format comes so near to R² of the first network, it has won."""


@dataclass
class Contender:
    """A plan, the network cut for it, and what it reached so far."""

    plan: SizePlan
    network: nn.Module
    """As it computes in its format: on a grid, or in float."""
    params: int
    epochs: int = 0
    accuracy: float = 0.0

    @property
    def form(self) -> str:
        """Its format."""
        return self.plan.formats[0]

    def rank(self) -> tuple[float, ...]:
        """Its place among others: by accuracy; the wider format wins a tie."""
        return -self.accuracy, -FORMATS[self.form].bits

    def as_dict(self) -> ContestRow:
        """As `result.json` has it."""
        return {
            "format": self.form,
            "params": self.params,
            "epochs": self.epochs,
            "accuracy": self.accuracy,
        }


def contest(context: Context, settings: ContestStage, state: State) -> State:
    """The state with the plan of the contender whose short training ended best on validation.

    Formats of fewer bits enter only where the wider one clearly lost accuracy.
    """
    first = state.plan
    if first is None or not first.contenders:
        return state
    entry = _Entry(context, settings, state)
    rounds = Rounds.of(context, settings, 1 + len(first.contenders))

    def loss(few: Context, chosen: FitSettings) -> Loss:
        return learning_loss(few, state, chosen, settings.temperature, settings.alpha)

    def train(one: Contender, number: int) -> None:
        network = one.network
        model = network.model if isinstance(network, QuantAware) else network
        result = rounds.train(
            *(network, loss, f"contest {one.form}", number),
            first=_first_epochs(context, settings, model),
            shaped_like=model,
            faster=(STEPS,),
        )
        one.epochs += len(result.history)
        one.accuracy = validation_accuracy(context, network)

    entered = [entry.of(replace(first, contenders=()))]
    train(entered[0], 0)
    if _loses(context, state, entered[0]):
        for plan in first.contenders:
            entered.append(entry.of(plan))
            train(entered[-1], 0)
    won = winner(entered, train, Contender.rank)
    outcome = _outcome(context.data, entered, won)
    context.reporter.note(f"contest: {outcome}")
    section: ContestSection = {
        "winner": won.form,
        "rows": [_row(context, one) for one in entered],
        "n": len(context.data.validation),
    }
    plan = replace(won.plan, reason=f"{won.plan.reason}; {outcome}")
    return replace(state, plan=plan).with_section("contest", section)


def _loses(context: Context, state: State, one: Contender) -> bool:
    """Whether it is less accurate on validation than the first network, clearly: the whole 95 %
    interval of the paired difference lies below zero.
    """
    pair = against(context, state.need_teacher(), one.network)
    if pair is None:
        return one.accuracy < state.need_baseline().validation_accuracy - NEAR
    return pair.interval[1] < 0


def _first_epochs(context: Context, settings: ContestStage, model: nn.Module) -> int:
    """Of a training of the first round."""
    if len(context.data.train) > LARGE_SPLIT:
        return WHOLE_LARGE // SHARE
    return max(1, fit_settings(context, model, settings).epochs // SHARE)


def _row(context: Context, one: Contender) -> ContestRow:
    """Its row, of a classification with the 95 % interval of its accuracy."""
    row, images = one.as_dict(), len(context.data.validation)
    if context.data.task.metric == "accuracy":
        row["ci95"] = list(interval(round(one.accuracy * images), images))
    return row


def _outcome(data: DataSet, entered: Sequence[Contender], won: Contender) -> str:
    rows = ", ".join(
        f"{one.form} {one.params:,} parameters {on_validation(data, one.accuracy)} "
        f"after {one.epochs} epochs"
        for one in entered
    )
    if len(entered) == 1:
        near = "is not clearly less accurate than the first network after a short training"
        return f"{won.form} {near}, so no fewer bits were tried ({rows})"
    return f"{won.form} is the most accurate in short trainings ({rows})"


class _Entry:
    """Cuts the network for one plan after the other; its channels are scored once for all."""

    def __init__(self, context: Context, settings: ContestStage, state: State) -> None:
        self._context = context
        self._settings = settings
        self._state = state

    @cached_property
    def _scored(self) -> tuple[ChannelGraph, Scores]:
        context = self._context
        settings = self._settings
        state = self._state
        model = copy.deepcopy(state.need_model()).to(context.device)
        graph = trace(model, context.example)
        chosen = fit_settings(context, model, settings, epochs=1)
        loss = learning_loss(context, state, chosen, settings.temperature, settings.alpha)
        return graph, score(context, model, graph, settings, settings.criterion, loss)

    def of(self, plan: SizePlan) -> Contender:
        """The network cut for `plan` in one step, on its grid."""
        context = self._context
        model = copy.deepcopy(self._state.need_model()).cpu()
        if plan.prune:
            graph, scores = self._scored
            chooser = Chooser(model, graph, scores, plan, "cost", {})
            keep = chooser.within(budgets_of(model, graph, plan)).keep
            small = shrink(model, keep).to(context.device)
            repaired(model.to(context.device), small, keep, repair_images(context))
            model = small
        model = model.to(context.device)
        form, params = FORMATS[plan.formats[0]], count(model)
        if not form.is_integer:
            return Contender(plan, model, params)
        names = [*trace(model.cpu(), context.example).output_shapes]
        return Contender(plan, on_grid(context, model, bits_by_layer(form.name, names)), params)
