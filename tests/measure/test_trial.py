"""A file that crashes ONNX Runtime, or cannot be loaded, ends a child process and no other."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgecompress.errors import EdgecompressError, UsageError
from edgecompress.measure import processes, runtime


def _model(path: Path, operation: str = "Relu") -> Path:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node(operation, ["x"], ["y"])],
        "one",
        [value("x", TensorProto.FLOAT, ["batch", 4])],
        [value("y", TensorProto.FLOAT, ["batch", 4])],
    )
    opset = helper.make_opsetid("", 18)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), str(path))
    return path


def test_a_good_file_passes(tmp_path: Path) -> None:
    path = _model(tmp_path / "good.onnx")
    before = path.read_bytes()
    processes.try_out(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["good.onnx"], "nothing is left beside it"


def test_a_file_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'.*odd\.onnx' cannot be loaded"):
        processes.try_out(_model(tmp_path / "odd.onnx", "NoSuchOperation"))


def test_a_crash_is_an_error_with_its_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the runtime crashes on: here the child itself is what ends by a signal."""
    code = f"import os; os.kill(os.getpid(), {int(signal.SIGSEGV)})"
    monkeypatch.setattr(processes, "_RUN", code)
    with pytest.raises(EdgecompressError, match=r"crashes on 'good\.onnx' \(SIGSEGV\)"):
        processes.try_out(_model(tmp_path / "good.onnx"))


def test_a_users_own_module_is_not_taken_for_a_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "onnx.py").write_text("raise SystemExit('the wrong module')\n")
    monkeypatch.chdir(tmp_path)
    processes.try_out(_model(tmp_path / "good.onnx"))
    loaded = runtime.load(tmp_path / "good.onnx")
    assert loaded.run(np.ones((2, 4), np.float32)).shape == (2, 4)
