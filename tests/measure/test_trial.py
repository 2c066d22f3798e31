"""A file that crashes ONNX Runtime, or cannot be loaded, ends a child process and no other."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest

from edgecompress.cli.app import run_command
from edgecompress.errors import EdgecompressError, UsageError
from edgecompress.measure import processes, runtime
from tests.measure.models import one_operation


def test_a_good_file_passes(tmp_path: Path) -> None:
    path = one_operation(tmp_path / "good.onnx", "Relu")
    before = path.read_bytes()
    processes.try_out(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["good.onnx"], "nothing is left beside it"


def test_a_file_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'.*odd\.onnx' cannot be loaded"):
        processes.try_out(one_operation(tmp_path / "odd.onnx", "NoSuchOperation"))


def test_a_crash_is_an_error_with_its_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the runtime crashes on: here the child itself is what ends by a signal."""
    code = f"import os; os.kill(os.getpid(), {int(signal.SIGSEGV)})"
    monkeypatch.setattr(processes, "_RUN", code)
    with pytest.raises(EdgecompressError, match=r"crashes on 'good\.onnx' \(SIGSEGV\)"):
        processes.try_out(one_operation(tmp_path / "good.onnx", "Relu"))


@pytest.mark.parametrize("command", [["bench"], ["predict", "--data", "digits"]])
def test_commands_outlive_a_file_that_crashes_the_runtime(
    command: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = one_operation(tmp_path / "good.onnx", "Relu")
    code = f"import os; os.kill(os.getpid(), {int(signal.SIGSEGV)})"
    monkeypatch.setattr(processes, "_RUN", code)
    assert run_command([*command, str(path)]) == 1
    assert "crashes on 'good.onnx' (SIGSEGV)" in capsys.readouterr().err


def test_a_users_own_module_is_not_taken_for_a_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "onnx.py").write_text("raise SystemExit('the wrong module')\n")
    monkeypatch.chdir(tmp_path)
    processes.try_out(one_operation(tmp_path / "good.onnx", "Relu"))
    loaded = runtime.load(tmp_path / "good.onnx")
    assert loaded.run(np.ones((2, 4), np.float32)).shape == (2, 4)
