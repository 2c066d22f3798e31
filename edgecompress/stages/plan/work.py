"""How the number format and the budgets are chosen.

If the unpruned network meets the targets in some format, nothing is pruned. Else the format is
planned in which most parameters fit: the bytes of a file are those of a weightless candidate (the
same network at its narrowest, exported and quantized for real) plus the weights in that format. A
weight takes one byte in int8 and two in fp16, but int8's graph is larger: below some 20 KB fp16 or
fp32 hold more. Where that does not settle it, the formats are measured (stage `quantize`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
from torch import nn

from edgecompress.core import ChannelGraph, shrink
from edgecompress.core.proof import trace
from edgecompress.core.select import Budget, cheapest, full_widths, pricer
from edgecompress.errors import EdgecompressError
from edgecompress.formats import FORMATS, LOW, ORDINARY, bits_by_layer, named
from edgecompress.measure import latency, runtime
from edgecompress.measure.cost import byte_price, cost, mac_price
from edgecompress.methods.scores import magnitude
from edgecompress.run.context import Context
from edgecompress.run.state import SizePlan, State
from edgecompress.stages.candidates import candidate, format_bytes
from edgecompress.stages.common import fp32_file
from edgecompress.stages.frozen import with_frozen
from edgecompress.units import format_count, format_size

if TYPE_CHECKING:
    from edgecompress.stages.plan import PlanStage, Targets
    from edgecompress.stages.search import SearchStage

GRAPH_BYTES = 500_000
"""More than the graph of any network takes without its weights: with this much to spare, no file is
written to see whether it fits.
"""


@dataclass(frozen=True)
class Narrowest:
    """The file at the floors: its bytes, and the part of them that no width changes."""

    bytes: int
    fixed: float


def plan(context: Context, settings: PlanStage, state: State) -> State:
    """The state with its plan."""
    model = state.need_model().cpu()
    graph = trace(model, context.example)
    state = with_frozen(context, state, model, graph)
    limits = _limits(settings.targets)
    fitting = tuple(
        form
        for form in allowed(settings.quantize)
        if _fits(context, model, graph, form, settings.targets)
    )
    if fitting:
        reason = f"the unpruned network fits as {', '.join(fitting)}: nothing is pruned"
        context.reporter.note(reason)
        kept = replace(limits, prune=False, formats=fitting, reason=reason)
        return replace(state, plan=kept)
    forms = (*allowed(settings.quantize), *LOW)
    floors = at_floors(model, graph, forms, settings.floor, block_of(settings))
    narrow = Narrow(context, floors)
    planned = _pruned_plan(context, model, graph, settings, narrow)
    return replace(state, plan=_with_contenders(context, model, graph, settings, planned, narrow))


def allowed(quantize: str) -> tuple[str, ...]:
    """The formats that a file may have."""
    return ORDINARY if quantize == "auto" else (named(quantize),)


def block_of(settings: PlanStage | SearchStage) -> int:
    """Channels that go at once from a wide group."""
    return 8 if settings.round_to == "auto" else settings.round_to


def _limits(targets: Targets) -> SizePlan:
    return SizePlan(
        prune=True,
        formats=(),
        bytes=targets.bytes,
        macs=targets.macs,
        latency_s=targets.latency,
        max_drop=targets.max_drop,
    )


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
    try:
        path = candidate(context, fp32_file(context, model), form)
    except EdgecompressError as error:
        context.reporter.note(f"no {form}: {error}")
        return False
    try:
        small = targets.bytes is None or path.stat().st_size <= targets.bytes
        return small and (targets.latency is None or _p50_s(context, path) <= targets.latency)
    finally:
        path.unlink(missing_ok=True)


def _p50_s(context: Context, path: Path) -> float:
    loaded = runtime.load(path, threads=context.threads)
    return latency.measure([loaded], samples=60, limit_s=1.5)[0].percentile(50) / 1e3


@dataclass(frozen=True)
class Floors:
    """A network with every width at its floor, and the bytes of its weights by format."""

    network: nn.Module
    weights: dict[str, float]

    def narrowest(self, form: str, size: int) -> Narrowest:
        """The file of `size` bytes that this network has in `form`."""
        return Narrowest(size, size - self.weights[form])


def at_floors(
    model: nn.Module, graph: ChannelGraph, forms: tuple[str, ...], floor: float, round_to: int
) -> Floors:
    """`model` with every width at its floor; which channels stay does not matter for `forms`."""
    nothing = tuple(Budget(byte_price(model, graph, form, 0.0), 0.0) for form in forms)
    scores = magnitude(model, graph, 1)
    selection = cheapest(model, graph, scores, nothing, floor=floor, round_to=round_to)
    weights = dict(zip(forms, selection.costs, strict=True))
    return Floors(shrink(model, selection.keep), weights)


class Narrow:
    """The files of a network at its floors, in all `forms` from one export."""

    def __init__(self, context: Context, floors: Floors) -> None:
        self._context, self._floors = context, floors

    @cached_property
    def _made(self) -> onnx.ModelProto:
        return fp32_file(self._context, self._floors.network)

    def __call__(self, form: str) -> Narrowest:
        """What the graph itself takes in `form`. Raises `EdgecompressError` where that cannot be
        made.
        """
        return self._floors.narrowest(form, format_bytes(self._context, form, self._made))


@dataclass(frozen=True)
class Planned:
    """A format, its file at the floors, and the parameters that fit into the target."""

    form: str
    small: Narrowest
    params: float


def _planned_formats(context: Context, narrow: Narrow, settings: PlanStage) -> list[Planned]:
    """The formats that were looked at, the best first: that in which most parameters fit; where
    the target is out of reach in all of them, that with the smallest file. A format that cannot be
    made, or crashes ONNX Runtime, is named and left out; raises its `EdgecompressError` where that
    leaves none.
    """
    target = settings.targets.bytes
    forms = sorted(allowed(settings.quantize), key=lambda form: FORMATS[form].bits)
    planned: list[Planned] = []
    refused: EdgecompressError | None = None
    for form in forms:
        best = max((one.params for one in planned), default=0.0)
        if planned and (target is None or best >= target * 8 / FORMATS[form].bits):
            continue  # more do not fit, even without a graph
        try:
            small = narrow(form)
        except EdgecompressError as error:
            context.reporter.note(f"no {form}: {error}")
            refused = error
            continue
        room = 0.0 if target is None else (target - small.fixed) * 8 / FORMATS[form].bits
        reached = target is None or small.bytes <= target
        planned.append(Planned(form, small, room if reached else 0.0))
    if not planned and refused is not None:
        raise refused
    return sorted(planned, key=lambda one: (-one.params, one.small.bytes))


def _pruned_plan(
    context: Context, model: nn.Module, graph: ChannelGraph, settings: PlanStage, narrow: Narrow
) -> SizePlan:
    """The plan: the format, and the bytes and MACs that the pruned network may take."""
    chosen, *others = _planned_formats(context, narrow, settings)
    small = chosen.small
    beside = ", ".join(f"{one.form} {one.params:,.0f}" for one in others)
    more = f" ({chosen.params:,.0f} weights fit; {beside})" if others else ""
    planned = replace(
        _limits(settings.targets),
        formats=(chosen.form,),
        fixed_bytes=small.fixed,
        smallest_bytes=min(one.small.bytes for one in (chosen, *others)),
        reason=f"the unpruned network fits in no format: planned for {chosen.form}{more}",
        floor=settings.floor,
        round_to=block_of(settings),
    )
    if settings.targets.latency is not None:
        planned = replace(planned, macs=_macs_for_latency(context, model, graph, planned))
    macs = f", at most {format_count(planned.macs)} MACs" if planned.macs else ""
    sizes = f"graph {format_size(small.fixed)}, smallest in it {format_size(small.bytes)}"
    context.reporter.note(f"{planned.reason}; {sizes}{macs}")
    return planned


def competes(context: Context) -> bool:
    """Does the recipe let formats of fewer bits compete?"""
    return any(stage.stage == "contest" for stage in context.recipe.stages)


def _with_contenders(
    context: Context,
    model: nn.Module,
    graph: ChannelGraph,
    settings: PlanStage,
    planned: SizePlan,
    narrow: Narrow,
) -> SizePlan:
    """The plan, beside plans for formats of fewer bits where the recipe lets them compete for the
    bytes of the target.
    """
    if settings.quantize != "auto" or planned.bytes is None or not competes(context):
        return planned
    own, planned_bytes = planned.smallest_bytes or 0, planned.bytes
    contenders = list[SizePlan]()
    names = [*graph.output_shapes]
    for form in LOW:
        if min(bits_by_layer(form, names).values()) >= 8:
            continue  # the edges are all that there is
        try:
            contenders.append(_contender(context, model, graph, settings, planned, form, narrow))
        except EdgecompressError as error:
            context.reporter.note(f"no {form}: {error}")
            continue
        if not contenders[-1].prune:
            break  # fewer bits would only be less accurate
    sizes = (planned.smallest_bytes, *(one.smallest_bytes for one in contenders))
    least = min((size for size in sizes if size is not None), default=None)
    reached = [
        replace(one, smallest_bytes=least)
        for one in contenders
        if one.smallest_bytes is None or one.smallest_bytes <= planned.bytes
    ]
    planned = replace(planned, smallest_bytes=least)
    if own > planned_bytes and reached:  # the planned format is out of reach, these are not
        return replace(reached[0], contenders=tuple(reached[1:]))
    return replace(planned, contenders=tuple(reached))


def _contender(
    context: Context,
    model: nn.Module,
    graph: ChannelGraph,
    settings: PlanStage,
    planned: SizePlan,
    form: str,
    narrow: Narrow,
) -> SizePlan:
    """What `planned` becomes in another format."""
    if _fits(context, model, graph, form, settings.targets):
        reason = f"the unpruned network fits as {form}"
        return replace(planned, prune=False, formats=(form,), smallest_bytes=None, reason=reason)
    small = narrow(form)
    return replace(
        planned,
        formats=(form,),
        fixed_bytes=small.fixed,
        smallest_bytes=small.bytes,
        reason=f"the unpruned network fits in no format: planned for {form}",
    )


def _macs_for_latency(
    context: Context, model: nn.Module, graph: ChannelGraph, planned: SizePlan
) -> int:
    """MACs at which the file runs within the requested latency, found by exporting and timing
    candidates (bisection).
    """
    scores = magnitude(model, graph, 1)
    price = mac_price(model, graph)
    every = cost(model, context.example, graph).macs
    low, high = 0.0, float(min(every, planned.macs or every))
    for number in range(6):
        middle = high if number == 0 else (low + high) / 2 if low else high / 3
        budget = (Budget(price, middle),)
        selection = cheapest(
            model, graph, scores, budget, floor=planned.floor, round_to=planned.round_to
        )
        made = fp32_file(context, shrink(model, selection.keep))
        path = candidate(context, made, planned.formats[0])
        try:
            fast = _p50_s(context, path) <= (planned.latency_s or 0.0)
        finally:
            path.unlink(missing_ok=True)
        low, high = (middle, high) if fast else (low, middle)
        if low == high or not (fast or selection.met):
            break  # the complete budget is fast enough, or even the floors are too slow
    return int(low or high)
