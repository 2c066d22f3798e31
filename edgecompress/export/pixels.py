"""Preprocessing inside the graph: a file that reads images as they were decoded."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgecompress.data.preprocess import Preprocess
from edgecompress.errors import EdgecompressError
from edgecompress.export import onnx as onnx_export
from edgecompress.measure.runtime import Array

PIXELS = "image"
RESIZE_OPSET = 18
"""The first opset whose Resize has antialiasing."""


def embed_preprocess(
    proto: onnx.ModelProto, preprocess: Preprocess, image_shape: tuple[int, int, int]
) -> onnx.ModelProto:
    """A copy of `proto` that reads decoded images: input "image" uint8 `(batch, height, width, C)`,
    of any height and width. `image_shape` is the `(C, H, W)` that `proto` reads.

    The graph resizes the shorter side (bilinear, with antialiasing), crops the centre and
    normalises, as `preprocess` does; resized pixels differ by at most 1 of 255 from Pillow's
    BILINEAR. Raises `EdgecompressError` below opset 18, which has no such
    resize.
    """
    if onnx_export.opset_of(proto) < RESIZE_OPSET:
        raise EdgecompressError(
            f"preprocessing in the graph needs opset {RESIZE_OPSET}: leave --min-ort out, or give "
            "1.15 or later"
        )
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    graph = result.graph
    channels = image_shape[0]
    nodes = [
        *_channels_first(channels),
        *_sizes(),
        *_resize_and_crop(),
        *_normalise(graph.input[0].name),
        *graph.node,
    ]
    image = helper.make_tensor_value_info(
        PIXELS, TensorProto.UINT8, ["batch", "height", "width", channels]
    )
    graph.initializer.extend(
        numpy_helper.from_array(value, name)
        for name, value in _constants(preprocess, image_shape).items()
    )
    _replace(graph.input, [image])
    _replace(graph.node, nodes)
    metadata = {prop.key: prop.value for prop in result.metadata_props}
    metadata["edgecompress.input"] = json.dumps("uint8 pixels")
    onnx_export.set_metadata(result, metadata)
    return result


def _replace(field: Any, values: list[Any]) -> None:
    """Replace the values of a repeated protobuf field in place."""
    values = list(values)
    del field[:]
    field.extend(values)


def _constants(
    preprocess: Preprocess, image_shape: tuple[int, int, int]
) -> dict[str, Array | np.float32]:
    """The tensors that the nodes read besides the image, by name."""
    channels, height, width = image_shape
    statistics = (preprocess.mean, preprocess.std)
    mean, std = (np.asarray(v, dtype=np.float32).reshape(1, -1, 1, 1) for v in statistics)
    return {
        "pre_rows": np.asarray([1, 2], dtype=np.int64),
        "pre_ends": np.asarray([0, 3], dtype=np.int64),
        "pre_shorter": np.float32(preprocess.resize or max(height, width)),
        "pre_axis": np.asarray([1], dtype=np.int64),
        **{f"pre_channel_{c}": np.asarray(c, dtype=np.int64) for c in range(channels)},
        "pre_crop": np.asarray([height, width], dtype=np.int64),
        "pre_low": np.float32(0),
        "pre_high": np.float32(255),
        "pre_scale": np.float32(preprocess.scale),
        "pre_mean": mean,
        "pre_std": std,
    }


def _node(operation: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    """A node that reads `inputs`, names with spaces between ("-" for one left out)."""
    names = ["" if name == "-" else name for name in inputs.split()]
    return helper.make_node(operation, names, [output], **attributes)


def _channels_first(channels: int) -> list[onnx.NodeProto]:
    """Nodes from "image" `(batch, height, width, C)` to "pre_chw" float32 `(batch, C, height,
    width)`, channel by channel.

    No Transpose: ONNX Runtime (1.31) moves it past the Resize that follows, and then takes the
    wrong entries of its sizes.
    """
    nodes = []
    for c in range(channels):
        nodes.append(_node("Gather", f"{PIXELS} pre_channel_{c}", f"pre_plane_{c}", axis=3))
        nodes.append(_node("Unsqueeze", f"pre_plane_{c} pre_axis", f"pre_map_{c}"))
    maps = " ".join(f"pre_map_{c}" for c in range(channels))
    return [
        *nodes,
        _node("Concat", maps, "pre_planes", axis=1),
        _node("Cast", "pre_planes", "pre_chw", to=TensorProto.FLOAT),
    ]


def _sizes() -> list[onnx.NodeProto]:
    """Nodes from "image" to "pre_sizes", its shape with the shorter side resized."""
    return [
        _node("Shape", PIXELS, "pre_shape"),
        _node("Gather", "pre_shape pre_rows", "pre_hw"),
        _node("Gather", "pre_shape pre_ends", "pre_lead"),
        _node("Cast", "pre_hw", "pre_sides", to=TensorProto.FLOAT),
        _node("ReduceMin", "pre_sides", "pre_side", keepdims=0),
        _node("Div", "pre_shorter pre_side", "pre_factor"),
        _node("Mul", "pre_sides pre_factor", "pre_wanted"),
        _node("Round", "pre_wanted", "pre_whole"),
        _node("Max", "pre_whole pre_shorter", "pre_larger"),
        _node("Cast", "pre_larger", "pre_plane", to=TensorProto.INT64),
        _node("Concat", "pre_lead pre_plane", "pre_sizes", axis=0),
    ]


def _resize_and_crop() -> list[onnx.NodeProto]:
    """Nodes from "pre_chw" and "pre_sizes" to "pre_cropped", whole values 0..255."""
    return [
        _node(
            "Resize",
            "pre_chw - - pre_sizes",
            "pre_resized",
            mode="linear",
            antialias=1,
            coordinate_transformation_mode="half_pixel",
            exclude_outside=1,  # at the border: the weights of the pixels that exist, as in Pillow
        ),
        _node("Round", "pre_resized", "pre_rounded"),
        _node("Clip", "pre_rounded pre_low pre_high", "pre_clipped"),
        _node("CenterCropPad", "pre_clipped pre_crop", "pre_cropped", axes=[2, 3]),
    ]


def _normalise(output: str) -> list[onnx.NodeProto]:
    """Nodes from "pre_cropped" to `output`, the input of the network."""
    return [
        _node("Div", "pre_cropped pre_scale", "pre_shares"),
        _node("Sub", "pre_shares pre_mean", "pre_centred"),
        _node("Div", "pre_centred pre_std", output),
    ]
