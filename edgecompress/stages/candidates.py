"""Files that are made only to be measured, and removed again: how large is this network in that
format?
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
from torch import nn

from edgecompress.core.simplify import fold_batchnorm
from edgecompress.errors import EdgecompressError
from edgecompress.export import lean
from edgecompress.export import onnx as onnx_export
from edgecompress.export.template import Template
from edgecompress.measure import trials
from edgecompress.run.context import Context
from edgecompress.stages.common import fp32_file, make_format, ships_lean

FileBytes = Callable[[nn.Module], int]
"""Bytes of the file of a network, in one format."""


def candidate(context: Context, made: onnx.ModelProto, form: str, images: int = 8) -> Path:
    """The fp32 file `made` in `form`, as it would ship but roughly calibrated: for its bytes and
    its latency only.

    It is called candidate.onnx, in the stage's folder; the caller removes it. Raises
    `EdgecompressError` where ONNX Runtime cannot load or run it.
    """
    context.folder.mkdir(parents=True, exist_ok=True)
    fp32 = context.folder / "candidate-fp32.onnx"
    path = context.folder / "candidate.onnx"
    try:
        onnx_export.save(made, fp32)
        proto = make_format(context, fp32, form, images)
        onnx_export.save(
            lean.shipped(proto, certain=True).proto if ships_lean(context) else proto, path
        )
        trials.try_out(path)
    except EdgecompressError:
        path.unlink(missing_ok=True)
        raise
    finally:
        fp32.unlink(missing_ok=True)
    return path


def file_bytes(context: Context, form: str, model: nn.Module) -> int:
    """Bytes of the ONNX file of `model` in `form`, from a real export that is removed again."""
    try:
        return format_bytes(context, form, fp32_file(context, model.cpu()))
    finally:
        model.to(context.device)


class Sizes:
    """Bytes of the files of one network in several widths, in one format: the first is exported,
    later ones take its graph where that is known to be the same.
    """

    def __init__(self, context: Context, form: str) -> None:
        self._context, self._form = context, form
        self._template: Template | None = None
        self._exported: tuple[nn.Module, int] | None = None

    def __call__(self, model: nn.Module) -> int:
        """Bytes of the file of `model`, which comes to the CPU and goes back."""
        if self._template is not None:
            try:
                made = self._template.filled(self._folded(model))
                return format_bytes(self._context, self._form, made)
            except (EdgecompressError, ValueError):  # of other widths it is another graph
                self._template = None
        return self.exact(model)

    def exact(self, model: nn.Module) -> int:
        """The same, by an export, unless that was just done."""
        if self._exported is not None and self._exported[0] is model:
            return self._exported[1]
        folded = self._folded(model)
        made = fp32_file(self._context, folded)
        self._template = Template.of(made, folded)
        self._exported = model, format_bytes(self._context, self._form, made)
        return self._exported[1]

    def _folded(self, model: nn.Module) -> nn.Module:
        folded = fold_batchnorm(model.cpu(), self._context.example)
        model.to(self._context.device)
        return folded


def format_bytes(context: Context, form: str, made: onnx.ModelProto) -> int:
    """Bytes of the fp32 file `made` in `form`."""
    path = candidate(context, made, form)
    try:
        return path.stat().st_size
    finally:
        path.unlink()
