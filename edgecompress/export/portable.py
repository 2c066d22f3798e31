"""Changes to a finished ONNX file: preprocessing inside the graph, and an older opset for an older
ONNX Runtime.
"""

from __future__ import annotations

import json
import re

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, version_converter

from edgecompress.data.preprocess import Preprocess
from edgecompress.errors import EdgecompressError, UsageError
from edgecompress.export import onnx as onnx_export

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
"""(opset, IR version) that each ONNX Runtime loads at most, from its table of compatibility; later
ones load more.
"""
OLDEST = min(RUNTIMES)
PIXELS = "image"


def parse_runtime(text: str) -> tuple[int, int]:
    """`1.14` or `1.14.1` as (1, 14). Raises `UsageError` for another text, or a runtime older than
    the oldest known.
    """
    found = re.fullmatch(r"(\d+)\.(\d+)(\.\d+)?", text)
    version = (int(found[1]), int(found[2])) if found else (0, 0)
    if version < OLDEST:
        raise UsageError(
            f"--min-ort '{text}' is no version of ONNX Runtime from {OLDEST[0]}.{OLDEST[1]} "
            "on: write it like 1.14"
        )
    return version


def limits(version: tuple[int, int]) -> tuple[int, int]:
    """(opset, IR version) that ONNX Runtime `version` loads at most."""
    return RUNTIMES[max(known for known in RUNTIMES if known <= version)]


def for_runtime(proto: onnx.ModelProto, text: str) -> onnx.ModelProto:
    """`proto` with an opset and IR version that ONNX Runtime `text` and all later ones load.

    Raises `UsageError` when an operation has no form in that opset.
    """
    opset, ir = limits(parse_runtime(text))
    now = next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    if opset < now:
        try:
            metadata = {prop.key: prop.value for prop in proto.metadata_props}
            proto = version_converter.convert_version(proto, opset)
            onnx_export.strip(proto)
            onnx_export.set_metadata(proto, metadata)
            for node in proto.graph.node:  # what the converter leaves behind
                if opset < 18 and node.op_type.startswith("Reduce"):
                    kept = [
                        attribute
                        for attribute in node.attribute
                        if attribute.name != "noop_with_empty_axes"
                    ]
                    del node.attribute[:]
                    node.attribute.extend(kept)
        except Exception as error:  # the converter raises what its C++ parts raise
            said = str(error).splitlines()[0]
            raise UsageError(
                f"ONNX Runtime {text} loads opset {opset} at most, and the network has no "
                f"form there ({said})"
            ) from error
    proto.ir_version = min(proto.ir_version, ir)
    return proto


def embed_preprocess(
    proto: onnx.ModelProto, preprocess: Preprocess, image_shape: tuple[int, int, int]
) -> onnx.ModelProto:
    """A copy of `proto` that reads an image as it is decoded: input "image" uint8 (batch, height,
    width, C), of any height and width.

    The graph resizes its shorter side (bilinear, with antialiasing), cuts out the middle and
    normalises, as `preprocess` says. Raises `EdgecompressError` below opset 18, which has no such
    resize.
    """
    if next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")) < 18:
        raise EdgecompressError(
            "preprocessing in the graph needs opset 18: leave --min-ort out, or give 1.15 or later"
        )
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    graph, (channels, height, width) = result.graph, image_shape
    name = graph.input[0].name
    shorter = preprocess.resize or max(height, width)
    mean, std = (
        np.asarray(values, dtype=np.float32).reshape(1, -1, 1, 1)
        for values in (preprocess.mean, preprocess.std)
    )
    constants = {
        "pre_rows": np.asarray([1, 2], dtype=np.int64),
        "pre_ends": np.asarray([0, 3], dtype=np.int64),
        "pre_shorter": np.float32(shorter),
        "pre_axis": np.asarray([1], dtype=np.int64),
        **{f"pre_channel_{c}": np.asarray(c, dtype=np.int64) for c in range(channels)},
        "pre_crop": np.asarray([height, width], dtype=np.int64),
        "pre_low": np.float32(0),
        "pre_high": np.float32(255),
        "pre_scale": np.float32(preprocess.scale),
        "pre_mean": mean,
        "pre_std": std,
    }
    nodes = [
        *_channels_first(channels),
        helper.make_node("Cast", ["pre_planes"], ["pre_chw"], to=TensorProto.FLOAT),
        helper.make_node("Shape", [PIXELS], ["pre_shape"]),
        helper.make_node("Gather", ["pre_shape", "pre_rows"], ["pre_hw"]),
        helper.make_node("Gather", ["pre_shape", "pre_ends"], ["pre_lead"]),
        helper.make_node("Cast", ["pre_hw"], ["pre_sides"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMin", ["pre_sides"], ["pre_side"], keepdims=0),
        helper.make_node("Div", ["pre_shorter", "pre_side"], ["pre_factor"]),
        helper.make_node("Mul", ["pre_sides", "pre_factor"], ["pre_wanted"]),
        helper.make_node("Round", ["pre_wanted"], ["pre_whole"]),
        helper.make_node("Max", ["pre_whole", "pre_shorter"], ["pre_larger"]),
        helper.make_node("Cast", ["pre_larger"], ["pre_plane"], to=TensorProto.INT64),
        helper.make_node("Concat", ["pre_lead", "pre_plane"], ["pre_sizes"], axis=0),
        helper.make_node(
            "Resize",
            ["pre_chw", "", "", "pre_sizes"],
            ["pre_resized"],
            mode="linear",
            antialias=1,
            coordinate_transformation_mode="half_pixel",
        ),
        helper.make_node("Round", ["pre_resized"], ["pre_rounded"]),
        helper.make_node("Clip", ["pre_rounded", "pre_low", "pre_high"], ["pre_clipped"]),
        helper.make_node(
            "CenterCropPad", ["pre_clipped", "pre_crop"], ["pre_cropped"], axes=[2, 3]
        ),
        helper.make_node("Div", ["pre_cropped", "pre_scale"], ["pre_shares"]),
        helper.make_node("Sub", ["pre_shares", "pre_mean"], ["pre_centred"]),
        helper.make_node("Div", ["pre_centred", "pre_std"], [name]),
    ]
    del graph.input[:]
    graph.input.append(
        helper.make_tensor_value_info(
            PIXELS, TensorProto.UINT8, ["batch", "height", "width", channels]
        )
    )
    graph.initializer.extend(
        numpy_helper.from_array(value, key) for key, value in constants.items()
    )
    own = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *own])
    metadata = {prop.key: prop.value for prop in result.metadata_props} | {
        "edgecompress.input": json.dumps("uint8 pixels")
    }
    onnx_export.set_metadata(result, metadata)
    return result


def _channels_first(channels: int) -> list[onnx.NodeProto]:
    """Nodes from "image" (batch, height, width, C) to "pre_planes" (batch, C, height, width),
    channel by channel.

    No Transpose: ONNX Runtime (1.31) moves it past the Resize that follows, and then takes wrong
    entries of its sizes.
    """
    nodes = []
    for c in range(channels):
        nodes.append(
            helper.make_node("Gather", [PIXELS, f"pre_channel_{c}"], [f"pre_plane_{c}"], axis=3)
        )
        nodes.append(
            helper.make_node("Unsqueeze", [f"pre_plane_{c}", "pre_axis"], [f"pre_map_{c}"])
        )
    return [
        *nodes,
        helper.make_node(
            "Concat", [f"pre_map_{c}" for c in range(channels)], ["pre_planes"], axis=1
        ),
    ]
