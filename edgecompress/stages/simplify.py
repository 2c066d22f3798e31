"""Stage `simplify`: the lossless steps, each verified on real images before the next."""

from __future__ import annotations

from dataclasses import asdict, replace

import torch
from torch import nn

from edgecompress.core import trace
from edgecompress.core.constants import drop_constant_channels
from edgecompress.core.simplify import find_pools, fold_pool
from edgecompress.errors import EdgecompressError
from edgecompress.pipeline import Context, State
from edgecompress.settings import ShrinkStage, SimplifyStage
from edgecompress.stages.common import count, validation_accuracy, with_row

TOLERANCE = 1e-4
"""Largest relative difference of logits that rounding in float32 may cause."""


def simplify(context: Context, _: SimplifyStage, state: State) -> State:
    """Fold enlarging pools and drop constant channels; the result is the teacher of what follows,
    where the recipe brings no other.
    """
    model = state.need_model().cpu()
    for fold in find_pools(model, context.example):
        smaller = fold_pool(model, fold)
        text = (
            f"{fold.pool} {fold.read[0]}x{fold.read[1]} -> {fold.pooled[0]}x{fold.pooled[1]} "
            f"folded into {fold.linear}"
        )
        note = f"{text}; valid for inputs {tuple(fold.input_shape)} only"
        state = _verified(context, state, model, smaller, "fold-pool", note)
        folds = [
            *state.numbers.get("folded_pools", []),
            {"pool": fold.pool, "input_shape": list(fold.input_shape)},
        ]
        state = state.with_numbers(folded_pools=folds)
        model = smaller
    state = drop_constants(context, replace(state, model=model))
    return replace(state, teacher=state.model) if state.mentor is None else state


def shrink(context: Context, _: ShrinkStage, state: State) -> State:
    """Make a zeroed network smaller where that is exact; the table says what stayed, and why."""
    before = {g.name: g.size for g in trace(state.need_model(), context.example).groups}
    state = drop_constants(context, state)
    now = {g.name: g.size for g in trace(state.need_model(), context.example).groups}
    if not any(row["removed"] for row in state.numbers["constant_channels"]):
        context.reporter.note("no channel is constant or unread: nothing was removed")
    return state.with_numbers(
        widths={name: [size, now.get(name, size)] for name, size in before.items()}
    )


def drop_constants(context: Context, state: State) -> State:
    """The state with the channels gone that never change or are never read, verified, and a table
    of them in its numbers.
    """
    model = state.need_model().cpu()
    smaller, rows = drop_constant_channels(model, trace(model, context.example), context.example)
    state = state.with_numbers(constant_channels=[asdict(row) for row in rows])
    gone = sum(row.removed for row in rows)
    if not gone:
        return state
    state = _verified(
        context,
        state,
        model,
        smaller,
        "drop-constants",
        f"{gone} channels that never change or are never read",
    )
    return replace(state, model=smaller)


@torch.no_grad()
def difference(
    context: Context, before: nn.Module, after: nn.Module, limit: int = 64
) -> tuple[float, float]:
    """(largest |difference of logits|, largest |logit|) of two networks on validation images, in
    eval mode.
    """
    images = context.data.normalised(context.data.validation.pixels[:limit])
    old, new = before.eval()(images), after.eval()(images)
    return float((old - new).abs().max()), float(old.abs().max())


def _verified(
    context: Context, state: State, before: nn.Module, after: nn.Module, name: str, note: str
) -> State:
    """A row for a lossless step. Raises `EdgecompressError` when it was none."""
    diff, scale = difference(context, before, after)
    if diff > TOLERANCE * max(1.0, scale):
        raise EdgecompressError(
            f"step {name} changed the logits by {diff:g}: this is a bug of edgecompress, "
            "please report it"
        )
    context.reporter.note(f"{name}: {note}; largest change of a logit {diff:.1e}")
    return with_row(
        state,
        name,
        validation_accuracy(context, after),
        count(after),
        lossless=True,
        max_abs_logit_diff=diff,
        note=note,
    )
