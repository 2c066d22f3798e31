"""ONNX files in ONNX Runtime: providers, inputs of all kinds, bytes of all files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgecompress.errors import EnvironmentMissingError, UsageError
from edgecompress.measure import runtime
from tests.measure.models import fixed_batch, one_operation


def test_a_provider_that_falls_back_to_the_cpu_is_refused(files: dict[str, Path]) -> None:
    """Stock ONNX Runtime offers Azure's provider, which runs nothing of a plain file."""
    if "AzureExecutionProvider" not in ort.get_available_providers():
        pytest.skip("this ONNX Runtime has no AzureExecutionProvider")
    with pytest.raises(EnvironmentMissingError, match="would fall back to the CPU"):
        runtime.load(files["one"], provider="AzureExecutionProvider")


def feeds_of(path: Path, size: int | None = None, **shapes: tuple[int, ...]) -> runtime.Feeds:
    return runtime.load(path).random_feeds(size, np.random.default_rng(0), shapes)


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
    feeds = loaded.random_feeds(None, np.random.default_rng(0))
    loaded.check_finite(feeds)
    assert loaded.described() == "(5,) and int64 ()"
    with pytest.raises(UsageError, match="has 2 inputs"):
        loaded.run(feeds["table"])


@pytest.mark.parametrize("place", ["initializer", "attribute", "branch"])
def test_external_data_count_wherever_they_stand(place: str, tmp_path: Path) -> None:
    tensor = numpy_helper.from_array(np.ones((100, 10), np.float32), "w")
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    constant = helper.make_node("Constant", [], ["w"], value=tensor)
    if place == "branch":
        inner = helper.make_tensor_value_info("w", TensorProto.FLOAT, None)
        branch = helper.make_graph([constant], "branch", [], [inner])
        true = helper.make_node(
            "Constant", [], ["true"], value=numpy_helper.from_array(np.array(True))
        )
        choice = helper.make_node("If", ["true"], ["c"], then_branch=branch, else_branch=branch)
        nodes, weights = [true, choice, helper.make_node("MatMul", ["x", "c"], ["y"])], []
    else:
        product = helper.make_node("MatMul", ["x", "w"], ["y"])
        nodes = [constant, product] if place == "attribute" else [product]
        weights = [tensor] if place == "initializer" else []
    read = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 100])
    graph = helper.make_graph(nodes, "g", [read], [output], weights)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path / "a.onnx"
    onnx.save(
        proto,
        path,
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
        convert_attribute=True,
    )
    assert runtime.external_files(path) == {"weights.bin"}
    total = path.stat().st_size + (tmp_path / "weights.bin").stat().st_size
    assert runtime.file_bytes(path) == total
    assert total > 4000


def test_operations_from_before_the_runtimes_first_are_named_with_the_fix(tmp_path: Path) -> None:
    path = one_operation(tmp_path / "old.onnx", "BatchNormalization", opset=6)
    with pytest.raises(UsageError, match=r"of opset 6, the runtime's begin at 7: convert it"):
        runtime.load(path)
