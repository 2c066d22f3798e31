"""The smallest file whose validation accuracy is within `max_drop` of the teacher's.

Each round prunes the last good network to a smaller budget, distils, quantizes and measures.
Budgets halve until a round loses too much; then `refine` rounds try between the last good size and
the first bad one. The measured accuracy of a round decides.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import nn

from edgecompress import formats
from edgecompress.core import shrink
from edgecompress.core.proof import trace
from edgecompress.core.select import Budget, cheapest, full_widths, pricer
from edgecompress.export import lean
from edgecompress.export import onnx as onnx_export
from edgecompress.measure import trials
from edgecompress.measure.cost import byte_price
from edgecompress.methods.repair import repaired
from edgecompress.run.context import Context
from edgecompress.run.state import SizePlan, StageRow, State
from edgecompress.stages.common import (
    count,
    file_accuracy,
    fp32_file,
    learning_loss,
    make_format,
    watched,
)
from edgecompress.stages.plan.work import Narrow, at_floors
from edgecompress.stages.prune.work import repair_images, score
from edgecompress.stages.scoring import on_validation
from edgecompress.stages.training import fit_settings, train_model
from edgecompress.units import format_size

if TYPE_CHECKING:
    from edgecompress.stages.search import SearchStage

MOST_ROUNDS = 16


@dataclass(frozen=True)
class Candidate:
    """A network of the search, with the validation accuracy and the bytes of its file."""

    model: nn.Module
    accuracy: float
    bytes: int


@dataclass(frozen=True)
class Search:
    """What all rounds share: the format, the part of the file that no width changes, and the widths
    of the first network.
    """

    settings: SearchStage
    form: str
    fixed_bytes: float
    sizes: dict[str, int]


def search(context: Context, settings: SearchStage, state: State) -> State:
    """The smallest network that kept its accuracy, and a plan that names its format."""
    form = formats.named(settings.quantize)
    model = state.need_model()
    graph = trace(model, context.example)
    floors = at_floors(model, graph, (form,), settings.floor, settings.round_to)
    small = Narrow(context, floors)(form)
    sizes = {group.name: group.size for group in graph.groups}
    shared = Search(settings, form, small.fixed, sizes)
    least = state.need_baseline().validation_accuracy - settings.max_drop

    best = _candidate(context, model, form)
    met = best.accuracy >= least
    lower = 0.0
    left = settings.refine
    number = 0
    budget = best.bytes / 2
    while budget >= small.bytes and number < MOST_ROUNDS:
        number += 1
        state, tried = _round(context, shared, state, best.model, budget, number)
        kept = tried.accuracy >= least
        _note_round(context, number, tried, kept)
        if kept:
            best, met = tried, True
        else:
            lower = max(lower, budget)
        if lower:
            if left == 0:
                break
            left -= 1
        # halve until a round lost too much; then the geometric middle of good and bad
        budget = (lower * best.bytes) ** 0.5 if lower else best.bytes / 2
    outcome = "smallest file found" if met else "no file found"
    within = f"within {settings.max_drop:.2%} of the teacher in {number} round(s)"
    plan = SizePlan(
        prune=True,
        formats=(form,),
        max_drop=settings.max_drop,
        smallest_bytes=small.bytes,
        reason=f"{outcome} {within}",
    )
    if best.model is not model:
        state = state.with_model(best.model)
    row = StageRow("search", best.accuracy, count(best.model), bytes=best.bytes)
    return replace(state, plan=plan).with_row(row)


def _note_round(context: Context, number: int, tried: Candidate, kept: bool) -> None:
    verdict = "kept" if kept else "too low"
    size = format_size(tried.bytes)
    score = on_validation(context.data, tried.accuracy)
    context.reporter.note(f"round {number}: {size}, validation {score}, {verdict}")


def _candidate(context: Context, model: nn.Module, form: str) -> Candidate:
    """`model` with the figures of its file in `form`, calibrated as it would ship."""
    context.folder.mkdir(parents=True, exist_ok=True)
    fp32, path = context.folder / "try-fp32.onnx", context.folder / "try.onnx"
    try:
        onnx_export.save(fp32_file(context, model), fp32)
        made = lean.shipped(make_format(context, fp32, form))
        size = onnx_export.save(made.proto, path)
        trials.try_out(path)
        return Candidate(model, file_accuracy(context, path, context.data.validation), size)
    finally:
        fp32.unlink(missing_ok=True)
        path.unlink(missing_ok=True)


def _round(
    context: Context, shared: Search, state: State, start: nn.Module, budget: float, number: int
) -> tuple[State, Candidate]:
    """One try at `budget` bytes, from the network `start`."""
    settings = shared.settings
    graph = trace(start, context.example)
    chosen = fit_settings(context, start, settings, epochs=6)
    loss = learning_loss(context, state, chosen)
    scores = score(context, start.to(context.device), graph, settings, settings.criterion, loss)
    price = byte_price(start, graph, shared.form, shared.fixed_bytes)
    limit = Budget(price, min(budget, pricer(start, graph, price).cost(full_widths(graph))))
    selection = cheapest(
        start,
        graph,
        scores,
        (limit,),
        floor=settings.floor,
        round_to=settings.round_to,
        sizes=shared.sizes,
    )
    cut = shrink(start, selection.keep)
    tried = repaired(start, cut, selection.keep, repair_images(context))
    own = fit_settings(context, tried, settings, epochs=6)
    hooks = watched(context, f"search round {number}", settings.patience, keep_initial=True)
    result = train_model(context, tried, loss, own, hooks, seed=context.seed + number)
    candidate = _candidate(context, tried.cpu(), shared.form)
    name = f"search {number}"
    row = StageRow(name, candidate.accuracy, count(tried), bytes=candidate.bytes)
    return state.with_history(name, result).with_row(row), candidate
