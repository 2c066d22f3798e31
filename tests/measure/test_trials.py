"""A file that crashes ONNX Runtime, or cannot be loaded, ends a child process and no other."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest

from edgecompress.cli.app import run_command
from edgecompress.errors import EdgecompressError, UsageError
from edgecompress.measure import processes, runtime, trials
from tests.measure.models import one_operation


def _every_child_crashes(monkeypatch: pytest.MonkeyPatch) -> None:
    code = f"import os; os.kill(os.getpid(), {int(signal.SIGSEGV)})"
    monkeypatch.setattr(processes, "_RUN", code)
    monkeypatch.setattr(trials, "_children", trials._Children())


def test_a_good_file_passes(tmp_path: Path) -> None:
    path = one_operation(tmp_path / "good.onnx", "Relu")
    before = path.read_bytes()
    trials.try_out(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["good.onnx"], "nothing is left beside it"


def test_a_file_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'.*odd\.onnx' cannot be loaded"):
        trials.try_out(one_operation(tmp_path / "odd.onnx", "NoSuchOperation"))


def test_a_crash_is_an_error_with_its_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the runtime crashes on: here the child itself is what ends by a signal."""
    _every_child_crashes(monkeypatch)
    with pytest.raises(EdgecompressError, match=r"crashes on 'good\.onnx' \(SIGSEGV\)"):
        trials.try_out(one_operation(tmp_path / "good.onnx", "Relu"))


def test_one_child_tries_many_files_and_is_replaced_when_it_dies(tmp_path: Path) -> None:
    """Whatever an earlier file did to the child is not this one's fault."""
    good = one_operation(tmp_path / "good.onnx", "Relu")
    children = []
    for _ in range(2):
        trials.try_out(good)
        children.append(trials._children._child)
        with pytest.raises(UsageError, match="cannot be loaded"):
            trials.try_out(one_operation(tmp_path / "odd.onnx", "NoSuchOperation"))
    first, second = children
    assert first is not None
    assert first is second
    first._process.kill()
    first._process.wait()
    trials.try_out(good)
    assert trials._children._child not in (None, first)


def test_an_interrupted_question_gets_no_other_ones_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = one_operation(tmp_path / "good.onnx", "Relu")
    trials.try_out(good)
    child = trials._children._child
    assert child is not None

    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(child, "ask", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trials.try_out(good)
    assert child._process.poll() is not None
    trials.try_out(good)


def test_a_path_is_seen_from_where_the_caller_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        one_operation(tmp_path / folder / f"{folder}.onnx", "Relu")
        monkeypatch.chdir(tmp_path / folder)
        trials.try_out(Path(f"{folder}.onnx"))
        other = "b" if folder == "a" else "a"
        with pytest.raises(UsageError, match=f"'{other}.onnx' does not exist"):
            trials.try_out(Path(f"{other}.onnx"))


@pytest.mark.parametrize("command", [["bench"], ["predict", "--data", "digits"]])
def test_commands_outlive_a_file_that_crashes_the_runtime(
    command: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = one_operation(tmp_path / "good.onnx", "Relu")
    _every_child_crashes(monkeypatch)
    assert run_command([*command, str(path)]) == 1
    assert "crashes on 'good.onnx' (SIGSEGV)" in capsys.readouterr().err


def test_a_users_own_module_is_not_taken_for_a_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "onnx.py").write_text("raise SystemExit('the wrong module')\n")
    monkeypatch.chdir(tmp_path)
    trials.try_out(one_operation(tmp_path / "good.onnx", "Relu"))
    loaded = runtime.load(tmp_path / "good.onnx")
    assert loaded.run(np.ones((2, 4), np.float32)).shape == (2, 4)


def test_a_working_folder_that_is_gone_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = one_operation(tmp_path / "good.onnx", "Relu")
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    trials.try_out(good)
    assert trials.first_load(good) is None
