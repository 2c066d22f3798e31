"""The formats of one network: sizes, agreement, metadata, and the files that are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edgecompress.core import shrink, trace
from edgecompress.errors import UsageError
from edgecompress.export import fp16, in_float
from edgecompress.export import onnx as onnx_export
from edgecompress.export import quantize as quantizer
from edgecompress.formats import ORDINARY
from edgecompress.measure import runtime
from edgecompress.measure.cost import byte_price
from tests.export.models import EXAMPLE, SHAPE, SPEC, network


@pytest.fixture(scope="module")
def formats(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("formats")
    paths = {form: folder / f"{form}.onnx" for form in ORDINARY}
    onnx_export.save(
        onnx_export.to_onnx(network("student3"), EXAMPLE, SPEC.metadata()), paths["fp32"]
    )
    values = np.random.default_rng(0).standard_normal((32, *SHAPE)).astype(np.float32)
    onnx_export.save(fp16.to_fp16(paths["fp32"]), paths["fp16"])
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
        assert runtime.load(path).metadata.entries["classes"] == list(SPEC.classes)


def test_int8_leaves_no_layer_in_float(formats: dict[str, Path]) -> None:
    assert in_float.float_layers(formats["int8-qdq"]) == []
    assert len(in_float.float_layers(formats["fp32"])) == 12


@pytest.mark.parametrize("form", ORDINARY)
def test_the_byte_price_of_a_network_is_its_file_within_2_percent(
    form: str, formats: dict[str, Path]
) -> None:
    """Law 5: the price of the weights plus the graph of a narrower copy is the size of the file."""
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
        onnx_export.save(fp16.to_fp16(narrow), path)
    else:
        path = narrow
    price = pricer(model, graph, byte_price(model, graph, form, 0.0))
    full = torch.tensor([float(g.size) for g in graph.groups], dtype=torch.float64)
    fixed = path.stat().st_size - price.cost(torch.ones(len(graph.groups), dtype=torch.float64))
    predicted = fixed + price.cost(full)
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
