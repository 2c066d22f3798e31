"""The fp32 file, and how far it differs from the network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from edgecompress import checkpoint
from edgecompress.core import layers
from edgecompress.core.simplify import fold_batchnorm
from edgecompress.data import Images
from edgecompress.errors import EdgecompressError
from edgecompress.export import onnx as onnx_export
from edgecompress.measure import runtime, trials
from edgecompress.measure.runtime import Array, Runtime
from edgecompress.run.context import Context
from edgecompress.run.schema import ParityRow
from edgecompress.run.state import State
from edgecompress.stages.common import arrays, finished, fp32_file, validation_row

EXPORT_TOLERANCE = 1e-4
"""Largest difference of logits between network and file, relative to the largest logit."""


@dataclass(frozen=True)
class Parity:
    """Largest |difference of logits| and share of equal top-1 classes (None for a regression)."""

    max_abs_logit_diff: float
    top1_agreement: float | None
    samples: int

    def as_dict(self) -> ParityRow:
        """As `result.json` has it."""
        return {
            "max_abs_logit_diff": self.max_abs_logit_diff,
            "top1_agreement": self.top1_agreement,
            "samples": self.samples,
        }


def parity(context: Context, model: nn.Module, path: Path, limit: int = 4000) -> Parity:
    """How `model` and the file at `path` agree over the data's images.

    All images of all splits are compared (at most `limit`, evenly spread), in batches of 32, and
    the first 8 also as 1 + 7. No label is read.
    """
    loaded = runtime.load(path, threads=context.threads)
    model = model.cpu().eval()
    largest = 0.0
    equal = 0
    seen = 0
    for images, batch in _pairs(context, loaded, limit):
        with torch.no_grad():
            expected = model(torch.from_numpy(images)).numpy()
        outputs = loaded.run_finite(batch)
        if seen == 0:
            largest = _difference_in_parts(loaded, batch, expected)
        largest = max(largest, float(np.abs(outputs - expected).max()))
        equal += int((outputs.argmax(1) == expected.argmax(1)).sum())
        seen += len(batch)
    classifies = context.data.task.metric == "accuracy"
    return Parity(largest, equal / seen if classifies else None, seen)


def _pairs(context: Context, loaded: Runtime, limit: int) -> Iterator[tuple[Array, Array]]:
    """Batches as the network reads them, and as the file does."""
    room = limit
    splits: tuple[Images, ...] = (context.data.validation, context.data.test, context.data.train)
    for split in splits:
        if room <= 0:
            return
        floats = arrays(context, split, room)
        inputs = arrays(context, split, room, pixels=loaded.reads_pixels)
        yield from zip(floats, inputs, strict=True)
        room -= min(room, len(split))


def _difference_in_parts(loaded: Runtime, batch: Array, expected: Array) -> float:
    """The first 8 samples as 1 + 7: a file must not depend on the batch size."""
    parts = np.concatenate([loaded.run(batch[:1]), loaded.run(batch[1:8])])
    return float(np.abs(parts - expected[:8]).max())


def export(context: Context, state: State) -> State:
    """`model.safetensors` and `model-fp32.onnx` (BatchNorm folded), which must agree to float
    tolerance.
    """
    model = state.need_model().cpu().eval()
    root = context.run.root
    context.folder.mkdir(parents=True, exist_ok=True)
    row = validation_row(context, "export fp32", model)
    model = model.cpu()
    written, path = context.folder / "made.onnx", root / "model-fp32.onnx"
    onnx_export.save(fp32_file(context, model, row.accuracy), written)
    if all(stage.stage != "quantize" for stage in context.recipe.stages):
        onnx_export.save(finished(context, written, row.accuracy), written)
    trials.try_out(written)
    agreed = parity(context, model, written, limit=256)
    _check_parity(context, model, agreed)

    written.replace(path)
    notes = checkpoint.notes_for(context.data)
    checkpoint.save(root / "model.safetensors", model, state.source, notes)
    change = f"largest change of a logit {agreed.max_abs_logit_diff:.1e}"
    note = f"{_folded_batchnorms(model, context.example)} BatchNorm folded; {change}"
    row = replace(row, lossless=True, bytes=path.stat().st_size, note=note)
    return replace(state, exported=True).with_row(row)


def _check_parity(context: Context, model: nn.Module, agreed: Parity) -> None:
    """Raises `EdgecompressError` when the file does not compute what `model` does."""
    with torch.no_grad():
        images = context.data.normalised(context.data.validation.pixels[:64])
        scale = float(model(images).abs().max())
    allowed = EXPORT_TOLERANCE * max(1.0, scale)
    if not agreed.max_abs_logit_diff <= allowed:
        raise EdgecompressError(
            f"the exported file differs from the network by {agreed.max_abs_logit_diff:g} in a "
            f"logit (allowed {allowed:g}): do not ship it; please report this network"
        )


def _folded_batchnorms(model: nn.Module, example: Tensor) -> int:
    """How many BatchNorms the export folds into convolutions."""

    def count(network: nn.Module) -> int:
        return sum(isinstance(module, layers.BatchNorm) for module in network.modules())

    return count(model) - count(fold_batchnorm(model, example))
