"""An older opset for an older ONNX Runtime, and preprocessing inside the graph."""

from __future__ import annotations

import re

import onnx
from onnx import version_converter

from edgecompress.errors import UsageError
from edgecompress.export import onnx as onnx_export
from edgecompress.export.pixels import embed_preprocess

__all__ = ["OLDEST", "RUNTIMES", "embed_preprocess", "for_runtime", "limits", "parse_runtime"]

RUNTIMES = {
    (1, 8): (14, 7),
    (1, 9): (15, 8),
    (1, 10): (15, 8),
    (1, 11): (16, 8),
    (1, 12): (17, 8),
    (1, 13): (17, 8),
    (1, 14): (18, 8),
    (1, 15): (19, 9),
    (1, 16): (19, 9),
    (1, 17): (20, 9),
    (1, 18): (21, 10),
}
"""The newest (opset, IR version) that each ONNX Runtime loads, from its compatibility table; later
runtimes load more.
"""
OLDEST = min(RUNTIMES)
WRAP = (1, 16)
"""The first ONNX Runtime that pads with values from the other side (a circular convolution)."""


def parse_runtime(text: str) -> tuple[int, int]:
    """`1.14` or `1.14.1` as (1, 14). Raises `UsageError` for any other text, and for a runtime
    older than the oldest known.
    """
    match = re.fullmatch(r"(\d+)\.(\d+)(\.\d+)?", text)
    version = (int(match[1]), int(match[2])) if match else (0, 0)
    if version < OLDEST:
        raise UsageError(
            f"--min-ort '{text}' is not a version of ONNX Runtime from {OLDEST[0]}.{OLDEST[1]} "
            "on: write it like 1.14"
        )
    return version


def limits(version: tuple[int, int]) -> tuple[int, int]:
    """The newest (opset, IR version) that ONNX Runtime `version` loads."""
    return RUNTIMES[max(known for known in RUNTIMES if known <= version)]


def for_runtime(proto: onnx.ModelProto, text: str) -> onnx.ModelProto:
    """`proto` with an opset and IR version that ONNX Runtime `text` and all later ones load.

    Raises `UsageError` when an operation cannot be expressed in that opset, or that runtime lacks
    it.
    """
    version = parse_runtime(text)
    opset, ir_version = limits(version)
    if version < WRAP and (name := _wrapping(proto)) is not None:
        raise UsageError(
            f"ONNX Runtime {text} has no circular padding, which '{name}' needs: give --min-ort "
            f"{WRAP[0]}.{WRAP[1]} or later, or another padding_mode"
        )
    if opset < onnx_export.opset_of(proto):
        try:
            proto = _converted(proto, opset)
        except Exception as error:  # the converter raises what its C++ parts raise
            raise UsageError(
                f"ONNX Runtime {text} loads opset {opset} at most, in which the network cannot be "
                f"expressed ({str(error).splitlines()[0]})"
            ) from error
    lowest = onnx_export.lowest_ir_version(proto)
    if lowest > ir_version:
        raise UsageError(
            f"opset {onnx_export.opset_of(proto)} needs IR version {lowest}, ONNX Runtime {text} "
            f"reads {ir_version} at most: give a later --min-ort"
        )
    proto.ir_version = lowest
    return proto


def _wrapping(proto: onnx.ModelProto) -> str | None:
    """The name of a node that pads with values from the other side, if there is one."""
    return next(
        (
            node.name or node.output[0]
            for node in proto.graph.node
            if node.op_type == "Pad" and any(a.s == b"wrap" for a in node.attribute)
        ),
        None,
    )


def _converted(proto: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """`proto` in an older `opset`, with its metadata."""
    metadata = {prop.key: prop.value for prop in proto.metadata_props}
    proto = version_converter.convert_version(proto, opset)
    onnx_export.strip(proto)
    onnx_export.set_metadata(proto, metadata)
    if opset < 18:
        for node in proto.graph.node:
            if node.op_type.startswith("Reduce"):
                _remove_attribute(node, "noop_with_empty_axes")  # the converter leaves it behind
    return proto


def _remove_attribute(node: onnx.NodeProto, name: str) -> None:
    """Remove an attribute of `node` in place."""
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend(kept)
