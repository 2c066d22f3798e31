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
from tests.measure.models import one_operation


def test_a_provider_that_falls_back_to_the_cpu_is_refused(files: dict[str, Path]) -> None:
    """Stock ONNX Runtime offers Azure's provider, which runs nothing of a plain file."""
    if "AzureExecutionProvider" not in ort.get_available_providers():
        pytest.skip("this ONNX Runtime has no AzureExecutionProvider")
    with pytest.raises(EnvironmentMissingError, match="would fall back to the CPU"):
        runtime.load(files["one"], provider="AzureExecutionProvider")


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
