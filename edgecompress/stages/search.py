"""Stage `search`: the smallest file whose validation accuracy is within `max_drop` of the
teacher's.

Each round prunes the last good network to a smaller budget, distils, quantizes and measures.
Budgets halve until a round loses too much; then `refine` rounds try between the last good size and
the first bad one. What a round measured is what decides.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from edgecompress.core import shrink, trace
from edgecompress.core.select import Budget, cheapest, full_widths, pricer
from edgecompress.export import onnx as onnx_export
from edgecompress.measure.cost import byte_price
from edgecompress.methods.repair import repaired
from edgecompress.pipeline import Context, State
from edgecompress.settings import SearchStage
from edgecompress.stages.common import (
    FORMAT_OF,
    count,
    file_accuracy,
    fit_settings,
    input_spec,
    learning_loss,
    make_format,
    watched,
    with_history,
    with_row,
)
from edgecompress.stages.plan import narrowest
from edgecompress.stages.prune import repair_images, score
from edgecompress.train.fit import fit
from edgecompress.units import format_size


def search(context: Context, settings: SearchStage, state: State) -> State:
    """Leave the smallest network that kept its accuracy, and a plan that names its format;
    `model.onnx` follows from it.
    """
    form = FORMAT_OF.get(settings.quantize, "int8-qdq")
    model = state.need_model()
    graph = trace(model, context.example)
    sizes = {group.name: group.size for group in graph.groups}
    small = narrowest(context, model, graph, form, settings.floor, settings.round_to)
    goal = state.numbers["teacher"]["validation_accuracy"] - settings.max_drop
    accuracy, size = _exact(context, model, form)
    chosen, chosen_accuracy, chosen_size, met = model, accuracy, size, accuracy >= goal
    start, upper, lower = model, float(size), 0.0
    budget, left, number = size / 2, settings.refine, 0
    while budget >= small.bytes and number < 16:
        number += 1
        tried, state, accuracy, size = _round(
            context, settings, state, start, form, budget, small.fixed, sizes, number
        )
        kept = accuracy >= goal
        context.reporter.note(
            f"round {number}: {format_size(size)}, validation {accuracy:.4f}, "
            f"{'kept' if kept else 'too low'}"
        )
        if kept:
            chosen, chosen_accuracy, chosen_size, met = tried, accuracy, size, True
            start, upper = tried, float(size)
        else:
            lower = max(lower, budget)
        if lower:
            if left == 0:
                break
            left -= 1
            budget = (lower * upper) ** 0.5
        else:
            budget = upper / 2
    found = "smallest file found" if met else "no file found"
    planned = {
        "prune": True,
        "formats": [form],
        "bytes": None,
        "macs": None,
        "latency_s": None,
        "max_drop": settings.max_drop,
        "smallest_bytes": small.bytes,
        "reason": f"{found} within {settings.max_drop:.2%} of the teacher in {number} round(s)",
    }
    state = replace(state, model=chosen).with_numbers(plan=planned)
    return with_row(state, "search", chosen_accuracy, count(chosen), bytes=chosen_size)


def _exact(context: Context, model: nn.Module, form: str) -> tuple[float, int]:
    """(validation accuracy, bytes) of the file of `model` in `form`, calibrated as it would
    ship.
    """
    context.folder.mkdir(parents=True, exist_ok=True)
    fp32, path = context.folder / "try-fp32.onnx", context.folder / "try.onnx"
    try:
        onnx_export.save(
            onnx_export.to_onnx(model, context.example, input_spec(context).metadata()), fp32
        )
        size = onnx_export.save(make_format(context, fp32, form), path)
        return file_accuracy(context, path, context.data.validation), size
    finally:
        fp32.unlink(missing_ok=True)
        path.unlink(missing_ok=True)


def _round(
    context: Context,
    settings: SearchStage,
    state: State,
    start: nn.Module,
    form: str,
    budget: float,
    fixed: float,
    sizes: dict[str, int],
    number: int,
) -> tuple[nn.Module, State, float, int]:
    """One try at `budget` bytes, from the network `start`: the network, the state with its row, its
    accuracy, and its exact bytes.
    """
    graph = trace(start, context.example)
    chosen = fit_settings(context, start, settings, epochs=6)
    loss = learning_loss(context, state, settings, chosen)
    values: Any = score(context, start.to(context.device), graph, settings, loss)
    price = byte_price(start, graph, form, fixed)
    limit = Budget(price, min(budget, pricer(start, graph, price).cost(full_widths(graph))))
    selection = cheapest(
        start,
        graph,
        values,
        (limit,),
        floor=settings.floor,
        round_to=settings.round_to,
        sizes=sizes,
    )
    tried = repaired(start, shrink(start, selection.keep), selection.keep, repair_images(context))
    chosen = fit_settings(context, tried, settings, epochs=6)
    hooks = watched(context, f"search round {number}", settings.patience)
    result = fit(
        tried.to(context.device),
        context.data,
        loss,
        chosen,
        seed=context.seed + number,
        device=context.device,
        hooks=hooks,
    )
    accuracy, size = _exact(context, tried.cpu(), form)
    state = with_row(
        with_history(state, f"search {number}", result),
        f"search {number}",
        accuracy,
        count(tried),
        bytes=size,
    )
    return tried, state, accuracy, size
