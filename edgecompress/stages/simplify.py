"""Stage `simplify`: the lossless steps, each verified on real images before the next."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from edgecompress.core import trace
from edgecompress.core.constants import drop_constant_channels
from edgecompress.core.simplify import find_pools, fold_pool
from edgecompress.errors import EdgecompressError
from edgecompress.pipeline import Context, State
from edgecompress.recipe import SimplifyStage
from edgecompress.stages.common import count, validation_accuracy, with_row

TOLERANCE = 1e-4
"""Largest relative difference of logits that rounding in float32 may cause."""


def simplify(context: Context, _: SimplifyStage, state: State) -> State:
    """Fold enlarging pools and drop constant channels; the result is the teacher of what follows."""
    model = state.need_model().cpu()
    for fold in find_pools(model, context.example):
        smaller = fold_pool(model, fold)
        text = f"{fold.pool} {fold.read[0]}x{fold.read[1]} -> {fold.pooled[0]}x{fold.pooled[1]} folded into {fold.linear}"
        note = f"{text}; valid for inputs {tuple(fold.input_shape)} only"
        state = _verified(context, state, model, smaller, "fold-pool", note)
        folds = [*state.numbers.get("folded_pools", []), {"pool": fold.pool, "input_shape": list(fold.input_shape)}]
        state = state.with_numbers(folded_pools=folds)
        model = smaller
    smaller, rows = drop_constant_channels(model, trace(model, context.example), context.example)
    constant = [{"group": r.group, "constant": r.constant, "removed": r.removed, "reason": r.reason} for r in rows]
    state = state.with_numbers(constant_channels=constant)
    if any(row.removed for row in rows):
        gone = sum(row.removed for row in rows)
        state = _verified(context, state, model, smaller, "drop-constants", f"{gone} channels whose output is constant")
        model = smaller
    return replace(state, model=model, teacher=model)


@torch.no_grad()
def difference(context: Context, before: nn.Module, after: nn.Module, limit: int = 64) -> tuple[float, float]:
    """(largest |difference of logits|, largest |logit|) of two networks on validation images, in eval mode."""
    images = context.data.normalised(context.data.validation.pixels[:limit])
    old, new = before.eval()(images), after.eval()(images)
    return float((old - new).abs().max()), float(old.abs().max())


def _verified(context: Context, state: State, before: nn.Module, after: nn.Module, name: str, note: str) -> State:
    """A row for a lossless step. Raises `EdgecompressError` when it was none."""
    diff, scale = difference(context, before, after)
    if diff > TOLERANCE * max(1.0, scale):
        raise EdgecompressError(f"step {name} changed the logits by {diff:g}: this is a bug of edgecompress, please report it")
    context.reporter.note(f"{name}: {note}; largest change of a logit {diff:.1e}")
    return with_row(state, name, validation_accuracy(context, after), count(after), lossless=True, max_abs_logit_diff=diff, note=note)
