"""Stage `plan`: choose the number format and the budgets before a channel is touched.

If the unpruned network meets the targets in some format, nothing is pruned. Else int8 is planned:
the bytes of the file are those of a weightless candidate (the same network at its narrowest,
exported and quantized for real) plus the weights in the final format.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from edgecompress.core import ChannelGraph, shrink, trace
from edgecompress.core.select import Budget, cheapest, full_widths, pricer
from edgecompress.measure import latency, runtime
from edgecompress.measure.cost import byte_price, cost, mac_price
from edgecompress.methods.scores import magnitude
from edgecompress.pipeline import Context, State
from edgecompress.settings import PlanStage, Targets
from edgecompress.stages.common import FORMAT_OF, candidate
from edgecompress.units import format_count, format_size


@dataclass(frozen=True)
class Narrowest:
    """The file at the floors: its bytes, and the part of them that no width changes."""

    bytes: int
    fixed: float


GRAPH_BYTES = 500_000
"""More than the graph of any network takes without its weights: with this much to spare, no file is
written to see whether it fits.
"""


def plan(context: Context, settings: PlanStage, state: State) -> State:
    """Write `numbers["plan"]`: format, budgets, whether to prune, and why."""
    model = state.need_model().cpu()
    graph = trace(model, context.example)
    fitting = {
        form: _fits(context, model, graph, form, settings.targets)
        for form in _allowed(settings.quantize)
    }
    if all(fitting.values()) or any(fitting.values()):
        forms = [form for form, fits in fitting.items() if fits]
        reason = f"the unpruned network fits as {', '.join(forms)}: nothing is pruned"
        context.reporter.note(reason)
        return state.with_numbers(
            plan={"prune": False, "formats": forms, "reason": reason, **_limits(settings.targets)}
        )
    form = FORMAT_OF.get(settings.quantize, "int8-qdq")
    return state.with_numbers(plan=budgets(context, model, graph, form, settings.targets, settings))


def _allowed(quantize: str) -> list[str]:
    return ["fp32", "fp16", "int8-qdq"] if quantize == "auto" else [FORMAT_OF[quantize]]


def _limits(targets: Targets) -> dict[str, Any]:
    return {
        "bytes": targets.bytes,
        "macs": targets.macs,
        "latency_s": targets.latency,
        "max_drop": targets.max_drop,
    }


def _fits(
    context: Context, model: nn.Module, graph: ChannelGraph, form: str, targets: Targets
) -> bool:
    """Does the unpruned network meet all targets as `form`? Its file is written only where the sum
    does not settle it.
    """
    if targets.macs is not None and cost(model, context.example, graph).macs > targets.macs:
        return False
    weights = pricer(model, graph, byte_price(model, graph, form, 0.0)).cost(full_widths(graph))
    if targets.bytes is not None and weights > targets.bytes:
        return False
    clearly_small = targets.bytes is None or weights + GRAPH_BYTES < targets.bytes
    if clearly_small and targets.latency is None:
        return True
    path = candidate(context, model, form)
    try:
        small = targets.bytes is None or path.stat().st_size <= targets.bytes
        return small and (targets.latency is None or _p50_s(context, path) <= targets.latency)
    finally:
        path.unlink(missing_ok=True)


def _p50_s(context: Context, path: Any) -> float:
    loaded = runtime.load(path, threads=context.threads)
    return latency.measure([loaded], samples=60, limit_s=1.5)[0].percentile(50) / 1e3


def narrowest(
    context: Context, model: nn.Module, graph: ChannelGraph, form: str, floor: float, round_to: int
) -> Narrowest:
    """Export the network at its floors in `form` and see what the graph itself takes."""
    scores = magnitude(model, graph, 1)
    price = byte_price(model, graph, form, 0.0)
    selection = cheapest(
        model, graph, scores, (Budget(price, 0.0),), floor=floor, round_to=round_to
    )
    path = candidate(context, shrink(model, selection.keep), form)
    try:
        size = path.stat().st_size
    finally:
        path.unlink(missing_ok=True)
    return Narrowest(size, size - selection.costs[0])


def budgets(
    context: Context,
    model: nn.Module,
    graph: ChannelGraph,
    form: str,
    targets: Targets,
    settings: PlanStage,
) -> dict[str, Any]:
    """The plan for `form`: bytes and MACs that the pruned network may take."""
    round_to = 8 if settings.round_to == "auto" else settings.round_to
    small = narrowest(context, model, graph, form, settings.floor, round_to)
    reason = f"the unpruned network fits in no format: planned for {form}"
    found: dict[str, Any] = {
        "prune": True,
        "formats": [form],
        "fixed_bytes": small.fixed,
        "smallest_bytes": small.bytes,
        "reason": reason,
        "floor": settings.floor,
        "round_to": round_to,
        **_limits(targets),
    }
    if targets.latency is not None:
        found["macs"] = _macs_for_latency(context, model, graph, form, targets, found)
    context.reporter.note(
        f"{reason}; graph {format_size(small.fixed)}, smallest reachable {format_size(small.bytes)}"
        + (f", at most {format_count(found['macs'])} MACs" if found["macs"] else "")
    )
    return found


def _macs_for_latency(
    context: Context,
    model: nn.Module,
    graph: ChannelGraph,
    form: str,
    targets: Targets,
    found: dict[str, Any],
) -> int:
    """MACs at which the file runs within the latency asked, found by exporting and timing
    candidates (bisection).
    """
    scores = magnitude(model, graph, 1)
    price, whole = mac_price(model, graph), cost(model, context.example, graph).macs
    low, high = 0.0, float(min(whole, targets.macs or whole))
    for number in range(6):
        middle = high if number == 0 else (low + high) / 2 if low else high / 3
        selection = cheapest(
            model,
            graph,
            scores,
            (Budget(price, middle),),
            floor=found["floor"],
            round_to=found["round_to"],
        )
        path = candidate(context, shrink(model, selection.keep), form)
        try:
            fast = _p50_s(context, path) <= (targets.latency or 0.0)
        finally:
            path.unlink(missing_ok=True)
        low, high = (middle, high) if fast else (low, middle)
        if low == high or not (fast or selection.met):
            break  # the whole budget is fast enough, or even the floors are too slow
    return int(low or high)
