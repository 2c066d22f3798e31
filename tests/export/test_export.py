"""ONNX files: parity with the network, dynamic batch, determinism, formats, and what they say of
themselves.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from edgecompress.core import shrink, trace
from edgecompress.data import Preprocess
from edgecompress.errors import UsageError
from edgecompress.export import onnx as onnx_export
from edgecompress.export import quantize as quantizer
from edgecompress.export.onnx import InputSpec
from edgecompress.measure import runtime
from edgecompress.measure.cost import byte_price
from edgecompress.models import ModelSource, build
from tests.networks import random_keep

SHAPE = (3, 32, 32)
EXAMPLE = torch.zeros(1, *SHAPE)
SPEC = InputSpec(SHAPE, Preprocess((0.5,) * 3, (0.25,) * 3), ("a", "b", "c", "d", "e"), "test data")


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = build(ModelSource(name, 5, SHAPE)).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    graph = trace(model, EXAMPLE)
    return shrink(model, random_keep(graph.groups, 0, 0.4))


@pytest.mark.parametrize("name", ["student3", "resnet20", "mobilenet_v2", "lenet5"])
def test_the_file_equals_the_network_at_batch_1_and_7(name: str, tmp_path: Path) -> None:
    model, path = network(name), tmp_path / "m.onnx"
    onnx_export.save(onnx_export.to_onnx(model, EXAMPLE, SPEC.metadata()), path)
    loaded = runtime.load(path, threads=2)
    for count in (1, 7):
        images = torch.randn(count, *SHAPE)
        with torch.no_grad():
            expected = model(images).numpy()
        np.testing.assert_allclose(
            loaded.run(images.numpy()), expected, atol=1e-5 * max(1.0, np.abs(expected).max())
        )
    assert loaded.metadata["classes"] == list(SPEC.classes)
    assert loaded.metadata["mean"] == list(SPEC.preprocess.mean)
    kinds = {node.op_type for node in onnx.load(str(path)).graph.node}
    assert "BatchNormalization" not in kinds


def test_the_file_holds_no_trace_of_this_machine_and_is_the_same_twice(tmp_path: Path) -> None:
    model = network("student1")
    first, second = tmp_path / "1.onnx", tmp_path / "2.onnx"
    for path in (first, second):
        onnx_export.save(onnx_export.to_onnx(model, EXAMPLE, SPEC.metadata()), path)
    assert first.read_bytes() == second.read_bytes()
    text = first.read_bytes()
    for secret in (b"site-packages", b".py", b"/home", b"/root", b"stack_trace"):
        assert secret not in text
    assert len(text) - onnx_export.tensor_bytes(onnx.load(str(first))) < 12_000


def test_a_dropout_that_is_on_is_exported_off(tmp_path: Path) -> None:
    model = network("student1").train()
    onnx_export.save(onnx_export.to_onnx(model, EXAMPLE), tmp_path / "m.onnx")
    assert model.training
    loaded = runtime.load(tmp_path / "m.onnx")
    images = np.random.default_rng(0).standard_normal((2, *SHAPE)).astype(np.float32)
    np.testing.assert_array_equal(loaded.run(images), loaded.run(images))


@pytest.fixture(scope="module")
def formats(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("formats")
    paths = {form: folder / f"{form}.onnx" for form in quantizer.FORMATS}
    onnx_export.save(
        onnx_export.to_onnx(network("student3"), EXAMPLE, SPEC.metadata()), paths["fp32"]
    )
    values = np.random.default_rng(0).standard_normal((32, *SHAPE)).astype(np.float32)
    onnx_export.save(quantizer.to_fp16(paths["fp32"]), paths["fp16"])
    onnx_export.save(
        quantizer.to_int8(paths["fp32"], lambda: quantizer.batches_of(values)), paths["int8-qdq"]
    )
    return paths


def test_formats_shrink_the_file_and_keep_the_metadata(formats: dict[str, Path]) -> None:
    sizes = {form: path.stat().st_size for form, path in formats.items()}
    assert sizes["fp16"] < 0.55 * sizes["fp32"]
    assert sizes["int8-qdq"] < 0.35 * sizes["fp32"]
    values = np.random.default_rng(1).standard_normal((16, *SHAPE)).astype(np.float32)
    outputs = {form: runtime.load(path).run(values) for form, path in formats.items()}
    scale = np.abs(outputs["fp32"]).max()
    assert np.abs(outputs["fp16"] - outputs["fp32"]).max() < 0.01 * scale
    assert np.abs(outputs["int8-qdq"] - outputs["fp32"]).max() < 0.25 * scale
    for path in formats.values():
        assert runtime.load(path).metadata["classes"] == list(SPEC.classes)


def test_int8_leaves_no_layer_in_float(formats: dict[str, Path]) -> None:
    assert quantizer.float_layers(formats["int8-qdq"]) == []
    assert len(quantizer.float_layers(formats["fp32"])) == 12


@pytest.mark.parametrize("form", quantizer.FORMATS)
def test_the_byte_price_of_a_network_is_its_file_within_2_percent(
    form: str, formats: dict[str, Path]
) -> None:
    """Law 5: what the planner thinks the weights take, plus the graph of a narrower twin, is the
    size of the file.
    """
    from edgecompress.core.select import pricer

    model = network("student3")
    graph = trace(model, EXAMPLE)
    keep = {g: torch.arange(g.size) < 1 for g in graph.groups}
    folder = formats["fp32"].parent
    narrow, path = folder / "narrow-fp32.onnx", folder / f"narrow-{form}.onnx"
    onnx_export.save(onnx_export.to_onnx(shrink(model, keep), EXAMPLE, SPEC.metadata()), narrow)
    values = np.random.default_rng(0).standard_normal((4, *SHAPE)).astype(np.float32)
    if form == "int8-qdq":
        onnx_export.save(quantizer.to_int8(narrow, lambda: quantizer.batches_of(values)), path)
    elif form == "fp16":
        onnx_export.save(quantizer.to_fp16(narrow), path)
    else:
        path = narrow
    price = pricer(model, graph, byte_price(model, graph, form, 0.0))
    whole = torch.tensor([float(g.size) for g in graph.groups], dtype=torch.float64)
    fixed = path.stat().st_size - price.cost(torch.ones(len(graph.groups), dtype=torch.float64))
    predicted = fixed + price.cost(whole)
    assert abs(predicted / formats[form].stat().st_size - 1) < 0.02


def test_bad_files_are_one_line(tmp_path: Path) -> None:
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"nothing")
    for path in (bad, tmp_path / "missing.onnx"):
        with pytest.raises(UsageError) as caught:
            runtime.load(path)
        assert "\n" not in str(caught.value)


def test_another_input_shape_is_refused(formats: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="it reads"):
        runtime.load(formats["fp32"]).run(np.zeros((1, 3, 16, 16), np.float32))
