"""Exported files: parity with the network, dynamic batch, determinism."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from edgecompress.export import onnx as onnx_export
from edgecompress.measure import runtime
from tests.export.models import EXAMPLE, SHAPE, SPEC, network


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
    assert loaded.metadata.entries["classes"] == list(SPEC.classes)
    assert loaded.metadata.entries["mean"] == list(SPEC.preprocess.mean)
    kinds = {node.op_type for node in onnx.load(str(path)).graph.node}
    assert "BatchNormalization" not in kinds


def test_the_file_is_deterministic_and_names_nothing_of_this_machine(tmp_path: Path) -> None:
    model = network("student1")
    first, second = tmp_path / "1.onnx", tmp_path / "2.onnx"
    for path in (first, second):
        onnx_export.save(onnx_export.to_onnx(model, EXAMPLE, SPEC.metadata()), path)
    assert first.read_bytes() == second.read_bytes()
    text = first.read_bytes()
    for secret in (b"site-packages", b".py", b"/home", b"/root", b"stack_trace"):
        assert secret not in text
    assert len(text) - onnx_export.tensor_bytes(onnx.load(str(first))) < 12_000


def test_active_dropout_is_exported_inactive(tmp_path: Path) -> None:
    model = network("student1").train()
    onnx_export.save(onnx_export.to_onnx(model, EXAMPLE), tmp_path / "m.onnx")
    assert model.training
    loaded = runtime.load(tmp_path / "m.onnx")
    images = np.random.default_rng(0).standard_normal((2, *SHAPE)).astype(np.float32)
    np.testing.assert_array_equal(loaded.run(images), loaded.run(images))
