"""Short trainings of networks of several families, each cut to the same bytes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import nn

from edgecompress.core import shrink
from edgecompress.core.proof import trace
from edgecompress.measure.cost import cost
from edgecompress.methods.scores import random as random_scores
from edgecompress.models.registry import ModelSource, reads
from edgecompress.proportions import interval
from edgecompress.run.context import Context, seed_everything
from edgecompress.run.sections import AutoRow, AutoSection
from edgecompress.run.state import SizePlan, State
from edgecompress.stages.budgets import Chooser, budgets_of
from edgecompress.stages.candidates import file_bytes
from edgecompress.stages.common import count, validation_accuracy
from edgecompress.stages.halving import Rounds, winner
from edgecompress.stages.plan.work import at_floors
from edgecompress.stages.scoring import on_validation
from edgecompress.stages.train.work import start
from edgecompress.train.fit import smoothed
from edgecompress.units import format_size

if TYPE_CHECKING:
    from edgecompress.stages.auto import AutoStage

FORM = "int4"
"""The format that the networks are cut for: between those that may win in the end."""
EPOCHS = 2
"""Of the first round, where neither they nor a time are given."""
FLOOR = 0.1
"""Share of every group's channels that stays."""
SMOOTHING = 0.1


@dataclass
class Entrant:
    """A network of the field: what it is built from, cut to the target, and what it reached."""

    source: ModelSource
    network: nn.Module
    params: int
    macs: int
    epochs: int = 0
    accuracy: float = 0.0

    def rank(self) -> tuple[float, ...]:
        """Its place among others: by accuracy, then by fewer operations."""
        return -self.accuracy, self.macs


def choose(context: Context, settings: AutoStage, state: State) -> State:
    """The state with the source of the network whose short trainings ended best on validation."""
    limit = settings.target(context.recipe.stages)
    entered = list[Entrant]()
    for name in settings.models:
        source = replace(state.source, name=name)
        readable = reads(source)
        network = cut(context, source, limit) if readable else None
        if network is None:
            fits = f"does not fit {format_size(limit)}"
            reason = fits if readable else f"cannot read images of {source.image_shape}"
            context.reporter.note(f"{name} {reason}: left out")
            continue
        macs = cost(network, context.example).macs
        entered.append(Entrant(source, network, count(network), macs))
    if not entered:
        context.reporter.note(f"nothing fits {format_size(limit)}: {state.source.name} is taken")
        return state
    rounds = Rounds.of(context, settings, len(entered))

    def train(one: Entrant, number: int) -> None:
        name = f"auto {one.source.name}"
        result = rounds.train(
            *(one.network, lambda *_: smoothed(SMOOTHING), name, number),
            first=EPOCHS,
            keep_initial=number > 0,
        )
        one.network = result.model
        one.epochs += len(result.history)
        one.accuracy = validation_accuracy(context, one.network)

    for one in entered:
        train(one, 0)
    best = winner(entered, train, Entrant.rank)
    ordered = sorted(entered, key=Entrant.rank)
    field = ", ".join(
        f"{one.source.name} {on_validation(context.data, one.accuracy)} after {one.epochs} epochs"
        for one in ordered
    )
    name = best.source.name
    context.reporter.note(f"{name} begins: the best of short trainings ({field})")
    images = len(rounds.few.data.validation)
    section: AutoSection = {
        "winner": name,
        "target_bytes": limit,
        "training_images": len(rounds.few.data.train),
        "n": images,
        "rows": [_row(one, images) for one in ordered],
    }
    return replace(state, source=best.source).with_section("auto", section)


def cut(context: Context, source: ModelSource, limit: int) -> nn.Module | None:
    """A new network of `source`, its widths reduced by one share until its file in `FORM` takes
    `limit` bytes; None where it does not fit.
    """
    seed_everything(context.seed)
    model, _ = start(context, source, None)
    model = model.cpu()
    graph = trace(model, context.example)
    floors = at_floors(model, graph, (FORM,), FLOOR, 1)
    small = floors.narrowest(FORM, file_bytes(context, FORM, floors.network))
    plan = SizePlan(True, (FORM,), bytes=limit, fixed_bytes=small.fixed, floor=FLOOR, round_to=1)
    scores = random_scores(graph, context.seed)
    chosen = Chooser(model, graph, scores, plan, "local", {}).within(budgets_of(model, graph, plan))
    return shrink(model, chosen.keep) if chosen.met else None


def _row(one: Entrant, images: int) -> AutoRow:
    return {
        "model": one.source.name,
        "params": one.params,
        "macs": one.macs,
        "epochs": one.epochs,
        "accuracy": one.accuracy,
        "ci95": list(interval(round(one.accuracy * images), images)),
    }
