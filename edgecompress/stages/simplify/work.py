"""Lossless steps: folding enlarging pools, dropping constant channels; each verified on images."""

from __future__ import annotations

import copy
from dataclasses import asdict, replace

import torch
from torch import nn

from edgecompress.core.constants import drop_constant_channels
from edgecompress.core.proof import trace
from edgecompress.core.simplify import find_pools, fold_pool
from edgecompress.errors import EdgecompressError
from edgecompress.run.context import Context
from edgecompress.run.state import Network, Section, State
from edgecompress.stages.common import validation_row

TOLERANCE = 1e-4
"""Largest relative difference of logits that rounding in float32 may cause."""


def simplify(context: Context, state: State) -> State:
    """Fold enlarging pools and drop constant channels; the teacher of what follows is a copy of the
    result, where the recipe brings no other.
    """
    model = state.need_model().cpu()
    for fold in find_pools(model, context.example):
        smaller = fold_pool(model, fold)
        sizes = f"{fold.read[0]}x{fold.read[1]} -> {fold.pooled[0]}x{fold.pooled[1]}"
        valid = f"valid for inputs {tuple(fold.input_shape)} only"
        note = f"{fold.pool} {sizes} folded into {fold.linear}; {valid}"
        state = _verified(context, state, model, smaller, "fold-pool", note)
        folded: Section = {"pool": fold.pool, "input_shape": list(fold.input_shape)}
        state = replace(state, folded_pools=(*state.folded_pools, folded))
        model = smaller
    state = drop_constants(context, state.with_model(model))
    if state.teacher_given or state.model is None:
        return state
    taught = Network(copy.deepcopy(state.model.module), state.model.source, state.model.preprocess)
    return replace(state, teacher=taught)


def drop_constants(context: Context, state: State) -> State:
    """The state without the channels that never change or are never read, verified, and with a
    table of them.
    """
    model = state.need_model().cpu()
    smaller, rows = drop_constant_channels(model, trace(model, context.example), context.example)
    state = replace(state, constant_channels=tuple(asdict(row) for row in rows))
    removed = sum(row.removed for row in rows)
    if not removed:
        return state
    note = f"{removed} channels that never change or are never read"
    state = _verified(context, state, model, smaller, "drop-constants", note)
    return state.with_model(smaller)


@torch.no_grad()
def difference(
    context: Context, before: nn.Module, after: nn.Module, limit: int = 64
) -> tuple[float, float]:
    """(largest |difference of logits|, largest |logit|) of two networks in eval mode, on up to
    `limit` validation images.
    """
    images = context.data.normalised(context.data.validation.pixels[:limit])
    old, new = before.eval()(images), after.eval()(images)
    return float((old - new).abs().max()), float(old.abs().max())


def _verified(
    context: Context, state: State, before: nn.Module, after: nn.Module, name: str, note: str
) -> State:
    """The state with a row for a lossless step. Raises `EdgecompressError` when it was none."""
    error, scale = difference(context, before, after)
    if error > TOLERANCE * max(1.0, scale):
        raise EdgecompressError(
            f"step {name} changed the logits by {error:g}: this is a bug of edgecompress, "
            "please report it"
        )
    context.reporter.note(f"{name}: {note}; largest change of a logit {error:.1e}")
    row = validation_row(context, name, after)
    return state.with_row(replace(row, lossless=True, max_abs_logit_diff=error, note=note))
