"""What a classifier says of images, and metadata that do not fit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from edgecompress.errors import UsageError
from edgecompress.measure import runtime
from edgecompress.measure.prediction import classifier, statistics
from edgecompress.measure.score import score_on

PLAIN = {"mean": [0, 0, 0], "std": [1, 1, 1]}


def network(
    path: Path,
    metadata: dict[str, object],
    *,
    shape: Sequence[object] = (3, 4, 4),
    tail: Sequence[onnx.NodeProto] = (),
    kind: int = TensorProto.FLOAT,
) -> Path:
    """Four classes: the mean of all pixels times 1, 2, 3 and -1."""
    weight = np.asarray([[1, 2, 3, -1]], dtype=np.float32)
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("ReduceMean", ["flat"], ["mean"], axes=[1], keepdims=1),
        helper.make_node("MatMul", ["mean", "w"], ["scores"], name="scoring"),
        *(tail or [helper.make_node("Identity", ["scores"], ["y"])]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *shape])],
        [helper.make_tensor_value_info("y", kind, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(
        proto, {f"edgecompress.{key}": json.dumps(value) for key, value in metadata.items()}
    )
    onnx.save(proto, path)
    return path


def test_the_most_probable_class_and_its_probability(tmp_path: Path) -> None:
    metadata = {**PLAIN, "classes": ["one", "two", "three", "minus"]}
    reader = classifier(runtime.load(network(tmp_path / "a.onnx", metadata)))
    Image.new("RGB", (9, 7), "white").save(tmp_path / "white.png")
    said = reader.predict(tmp_path / "white.png")
    logits = np.asarray([1.0, 2.0, 3.0, -1.0])
    assert said["label"] == "three"
    assert said["probability"] == pytest.approx(float(np.exp(3) / np.exp(logits).sum()), abs=1e-6)


def test_a_file_with_two_heads_says_both(tmp_path: Path) -> None:
    metadata = {**PLAIN, "classes": ["a", "b", "c", "d"], "heads": [2, 2]}
    reader = classifier(runtime.load(network(tmp_path / "a.onnx", metadata)))
    Image.new("RGB", (4, 4), "white").save(tmp_path / "white.png")
    assert [head["label"] for head in reader.predict(tmp_path / "white.png")["heads"]] == ["b", "c"]


@pytest.mark.parametrize(
    ("metadata", "text"),
    [
        ({}, "no input normalisation"),
        ({**PLAIN, "mean": [0, 0]}, r"has mean \[0, 0\] .* 3 channel"),
        ({**PLAIN, "std": [1, 1, 0]}, "has std"),
        ({**PLAIN, "std": "wide"}, "has std 'wide'"),
        ({**PLAIN, "resize": "large"}, "resize 'large'"),
        ({**PLAIN, "image_shape": 7}, "image_shape 7"),
    ],
)
def test_metadata_that_do_not_fit_are_named(
    metadata: dict[str, object], text: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=text):
        classifier(runtime.load(network(tmp_path / "a.onnx", metadata)))


@pytest.mark.parametrize(
    ("metadata", "text"),
    [
        ({**PLAIN, "classes": ["a", "b"]}, "4 outputs, but its metadata name 2 classes"),
        ({**PLAIN, "classes": 3}, "has classes 3"),
        ({**PLAIN, "heads": [2, 3]}, r"heads of \[2, 3\]"),
    ],
)
def test_names_of_classes_that_do_not_fit_are_refused(
    metadata: dict[str, object], text: str, tmp_path: Path
) -> None:
    reader = classifier(runtime.load(network(tmp_path / "a.onnx", metadata)))
    Image.new("RGB", (4, 4)).save(tmp_path / "black.png")
    with pytest.raises(UsageError, match=text):
        reader.predict(tmp_path / "black.png")


def test_shapes_that_are_no_images_are_refused(tmp_path: Path) -> None:
    for shape, text in (
        ((4, 4, 3), "channels last"),
        ((5,), "no images"),
        ((3, "h", "w"), "does not say the size"),
    ):
        path = network(tmp_path / "a.onnx", PLAIN, shape=shape)
        with pytest.raises(UsageError, match=text):
            classifier(runtime.load(path))


@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4), (4, 4, 3), (1, 2, 3, 4)])
def test_a_data_set_is_not_fed_to_what_reads_no_images(
    shape: tuple[int, ...], tmp_path: Path
) -> None:
    """An input of the batch alone, and others that are no images."""
    loaded = runtime.load(network(tmp_path / "a.onnx", PLAIN, shape=shape))
    with pytest.raises(UsageError):
        score_on(loaded, "digits")


def test_outputs_that_are_no_scores_are_refused(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "black.png")
    label = [helper.make_node("ArgMax", ["scores"], ["y"], axis=1, keepdims=0)]
    path = network(tmp_path / "a.onnx", PLAIN, tail=label, kind=TensorProto.INT64)
    with pytest.raises(UsageError, match=r"int64 outputs of shape \(\) per image"):
        classifier(runtime.load(path)).predict(tmp_path / "black.png")


def test_the_first_layer_that_is_not_finite_is_named(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "black.png")
    tail = [
        helper.make_node("Log", ["mean"], ["l"], name="logarithm"),
        helper.make_node("Mul", ["l", "scores"], ["y"], name="product"),
    ]
    path = network(tmp_path / "a.onnx", PLAIN, tail=tail)
    with pytest.raises(UsageError, match=r"first at layer 'logarithm' \(Log\)"):
        classifier(runtime.load(path)).predict(tmp_path / "black.png")


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    reader = classifier(runtime.load(network(tmp_path / "a.onnx", PLAIN)))
    (tmp_path / "broken.png").write_bytes(b"no")
    with pytest.raises(UsageError, match=r"broken\.png' cannot be read"):
        reader.predict(tmp_path / "broken.png")
    Image.new("F", (4, 4)).save(tmp_path / "float.tif")
    with pytest.raises(UsageError, match="mode F: give 8 or 16 bits"):
        reader.predict(tmp_path / "float.tif")


def test_statistics_have_one_value_per_channel(tmp_path: Path) -> None:
    loaded = runtime.load(network(tmp_path / "a.onnx", PLAIN))
    assert statistics(loaded, "mean", 3).shape == (1, 3, 1, 1)
    with pytest.raises(UsageError, match="1 channel"):
        statistics(loaded, "mean", 1)
