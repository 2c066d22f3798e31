"""ONNX export: one file, dynamic batch, evaluation mode, BatchNorm folded, no trace of the
exporting machine.

The exporter is `torch.onnx.export(dynamo=True)`. Its stack traces and source names cost 10-17 KB,
leak paths and change from machine to machine; they are removed, so that the same weights give the
same bytes.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from edgecompress import files
from edgecompress.core.simplify import fold_batchnorm
from edgecompress.data import Preprocess
from edgecompress.errors import EdgecompressError, UsageError, blamed
from edgecompress.export.operations import operations_kept
from edgecompress.export.pools import pools

OPSET = 18
INPUT, OUTPUT = "input", "logits"
LIMIT = 2**31 - 2**20
"""Bytes that one ONNX file (a protobuf) can hold, with a margin."""


@dataclass(frozen=True)
class InputSpec:
    """The metadata of a file: image shape (C, H, W), preprocessing, class names, and the data that
    they come from.
    """

    image_shape: tuple[int, int, int]
    preprocess: Preprocess
    classes: tuple[str, ...]
    data: str
    task: dict[str, Any] = field(default_factory=dict)
    """The meaning of the outputs, where they are not the logits of one classification."""

    def metadata(self) -> dict[str, str]:
        """As ONNX metadata: JSON under keys that begin with `edgecompress.`."""
        values: dict[str, Any] = {
            "image_shape": list(self.image_shape),
            **self.preprocess.as_dict(),
            "classes": list(self.classes),
            "data": self.data,
            **self.task,
        }
        return {
            f"edgecompress.{key}": json.dumps(value, ensure_ascii=False)
            for key, value in values.items()
        }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's prints and warnings off the user's streams; errors still raise."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def to_onnx(
    model: nn.Module, example: Tensor, metadata: dict[str, str] | None = None
) -> onnx.ModelProto:
    """`model` in evaluation mode as an ONNX model with a dynamic batch; the other sizes are those
    of `example` `(N, C, H, W)`.

    Input "input" float32 `(batch, C, H, W)`, output "logits" `(batch, K)`. Raises `UsageError`
    above 2 GB and `EdgecompressError` when the exporter refuses an operation.
    """
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    if size > LIMIT:
        raise UsageError(
            f"weights take {size} bytes, one ONNX file holds {LIMIT}: shrink the model first"
        )
    folded = fold_batchnorm(model, example.cpu()).cpu()
    batch = torch.zeros(2, *example.shape[1:])
    proto = _exported(folded, batch, type(model).__name__)
    strip(proto)
    proto.ir_version = lowest_ir_version(proto)
    proto.producer_name = "edgecompress"
    proto.producer_version = ""
    set_metadata(proto, metadata or {})
    return proto


def _exported(model: nn.Module, batch: Tensor, name: str) -> onnx.ModelProto:
    """What `torch.onnx.export` makes of `model`, called `name` in errors, on `batch`
    `(N, C, H, W)`.
    """
    try:
        with _quiet(), operations_kept():
            program = torch.onnx.export(
                model,
                (batch,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                optimize=True,
                verbose=False,
                custom_translation_table=pools(),
            )
    except Exception as error:  # the exporter raises many kinds; each names the operation
        raise EdgecompressError(f"torch.onnx cannot export {name}: {blamed(error)}") from error
    if program is None:
        raise EdgecompressError(f"torch.onnx gave no program for {name}")
    return program.model_proto


def opset_of(proto: onnx.ModelProto) -> int:
    """The version of the ONNX operations that `proto` uses."""
    versions = (entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    return int(next(versions))


def lowest_ir_version(proto: onnx.ModelProto) -> int:
    """The lowest IR version in which the operations of `proto` exist: the older it is, the older
    are the runtimes that read the file.
    """
    standard = [entry for entry in proto.opset_import if entry.domain in ("", "ai.onnx")]
    return int(onnx.helper.find_min_ir_version_for(standard))


def strip(proto: onnx.ModelProto) -> None:
    """Remove in place what only the exporting machine needs: documentation, stack traces, metadata,
    shapes of values inside the graph.
    """
    graph = proto.graph
    for part in (proto, graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        part.doc_string = ""
        if hasattr(part, "metadata_props"):
            del part.metadata_props[:]
    del graph.value_info[:]


def set_metadata(proto: onnx.ModelProto, metadata: dict[str, str]) -> None:
    """Replace the metadata of `proto` in place."""
    del proto.metadata_props[:]
    for key in sorted(metadata):
        proto.metadata_props.add(key=key, value=metadata[key])


def finish_like(proto: onnx.ModelProto, original: onnx.ModelProto) -> None:
    """Strip `proto` in place, and copy producer and metadata from the `original`; its IR version is
    the lowest that its operations allow.
    """
    strip(proto)
    used = {node.domain for node in proto.graph.node}
    # an unused domain of a later version keeps old runtimes from loading the file
    domains = [entry for entry in proto.opset_import if entry.domain in used]
    del proto.opset_import[:]
    proto.opset_import.extend(domains)
    proto.ir_version = lowest_ir_version(proto)
    proto.producer_name = original.producer_name
    proto.producer_version = original.producer_version
    set_metadata(proto, {p.key: p.value for p in original.metadata_props})


def save(proto: onnx.ModelProto, path: Path) -> int:
    """Check `proto` (onnx.checker, with shape inference) and write it to `path` atomically. Returns
    its bytes.

    Raises `EdgecompressError` for a model that is not valid.
    """
    with files.whole(path) as temporary:
        onnx.save_model(proto, str(temporary), save_as_external_data=False)
        try:
            onnx.checker.check_model(str(temporary), full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise EdgecompressError(
                f"the exported model is not valid ONNX: {str(error).splitlines()[0]}"
            ) from error
    return path.stat().st_size


def tensor_bytes(proto: onnx.ModelProto) -> int:
    """Bytes of all initializers; the rest of a file is the graph itself."""
    return sum(len(t.raw_data) for t in proto.graph.initializer)
