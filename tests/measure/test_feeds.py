"""Random inputs of every kind, and of every shape."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgecompress.errors import UsageError
from edgecompress.measure import runtime
from edgecompress.measure.feeds import random_feeds
from tests.measure.models import fixed_batch


def feeds_of(path: Path, size: int | None = None, **shapes: tuple[int, ...]) -> runtime.Feeds:
    return random_feeds(runtime.load(path), size, np.random.default_rng(0), shapes)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        (TensorProto.FLOAT, np.float32),
        (TensorProto.FLOAT16, np.float16),
        (TensorProto.DOUBLE, np.float64),
        (TensorProto.INT64, np.int64),
        (TensorProto.INT32, np.int32),
    ],
)
def test_inputs_of_every_type_of_number_are_filled(kind: int, dtype: type, tmp_path: Path) -> None:
    (value,) = feeds_of(fixed_batch(tmp_path / "a.onnx", "n", kind=kind), 2).values()
    assert value.shape == (2, 3, 8, 8)
    assert value.dtype == dtype
    assert len(np.unique(value)) > 1


def test_a_fixed_batch_is_taken_as_it_is(tmp_path: Path) -> None:
    path = fixed_batch(tmp_path / "a.onnx", 4)
    assert feeds_of(path)["x"].shape == (4, 3, 8, 8)
    with pytest.raises(UsageError, match=r"--batch-size 2: .* takes batches of 4 only"):
        feeds_of(path, 2)


def test_free_sizes_are_given_by_name(tmp_path: Path) -> None:
    path = fixed_batch(tmp_path / "a.onnx", "n", (3, "h", "w"))
    with pytest.raises(UsageError, match="--shape x=1x3x224x224"):
        feeds_of(path)
    assert feeds_of(path, x=(1, 3, 20, 30))["x"].shape == (1, 3, 20, 30)
    with pytest.raises(UsageError, match=r"--shape x=1x4x20x30"):
        feeds_of(path, x=(1, 4, 20, 30))
    with pytest.raises(UsageError, match=r"--shape y: .* it has x"):
        feeds_of(path, y=(1, 3))


def test_several_inputs_are_all_filled(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "ids"], ["y"])],
        "g",
        [
            helper.make_tensor_value_info("table", TensorProto.FLOAT, [2, 5]),
            helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(proto, tmp_path / "a.onnx")
    loaded = runtime.load(tmp_path / "a.onnx")
    feeds = random_feeds(loaded, None, np.random.default_rng(0))
    loaded.check_finite(feeds)
    assert loaded.described() == "(5,) and int64 ()"
    with pytest.raises(UsageError, match="has 2 inputs"):
        loaded.run(feeds["table"])


def test_all_free_sizes_are_named_at_once_with_what_was_given(tmp_path: Path) -> None:
    """A scalar is filled too."""
    value, kind = helper.make_tensor_value_info, TensorProto.FLOAT
    graph = helper.make_graph(
        [
            helper.make_node("Add", ["x", "rate"], ["s"]),
            helper.make_node("MatMul", ["state", "more"], ["p"]),
        ],
        "g",
        [
            value("x", kind, ["n", "length"]),
            value("state", kind, [2, "n", 8]),
            value("more", kind, [2, 8, "k"]),
            value("rate", kind, []),
        ],
        [value("s", kind, None), value("p", kind, None)],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(proto, tmp_path / "a.onnx")
    loaded, random = runtime.load(tmp_path / "a.onnx"), np.random.default_rng(0)
    with pytest.raises(UsageError) as caught:
        random_feeds(loaded, None, random, {"more": (2, 8, 3)})
    assert "'x' of shape (free, free) and 'state' of shape (2, free, 8)" in str(caught.value)
    assert str(caught.value).endswith("--shape more=2x8x3,x=1x224,state=2x224x8")
    shapes = {"more": (2, 8, 3), "x": (1, 224), "state": (2, 224, 8)}
    feeds = random_feeds(loaded, None, random, shapes)
    assert feeds["rate"].shape == ()
    loaded.check_finite(feeds)
