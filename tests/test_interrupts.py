from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgecompress import interrupts

OWN = """
import os, signal
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(192, 10)

    def forward(self, x):
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except BaseException as error:
            {loses}
        return self.fc(x.flatten(1))


def net():
    return Net()
"""


@pytest.fixture(autouse=True)
def python_s_own_handler() -> Iterator[None]:
    """As in a terminal: a suite in the background of a script inherits an ignored SIGINT."""
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, inherited)


def test_an_interrupt_that_came_out_as_another_error_is_remembered() -> None:
    with interrupts.listening(signal.SIGINT):
        with pytest.raises(RuntimeError, match="shape"):
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:
                raise RuntimeError("could not determine the shape") from None
        assert interrupts.asked()
        with pytest.raises(KeyboardInterrupt):
            interrupts.check()
    assert not interrupts.asked()


def test_signals_have_their_handlers_back() -> None:
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with interrupts.listening(signal.SIGINT):
        with interrupts.listening(signal.SIGTERM), pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        assert interrupts.asked(), "the outer one still listens"
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before
    assert not interrupts.asked()


def test_an_ignored_signal_and_a_program_s_own_handler_stay() -> None:
    heard: list[int] = []
    previous = signal.signal(signal.SIGINT, lambda number, _: heard.append(number))
    try:
        with interrupts.listening(signal.SIGINT):
            signal.raise_signal(signal.SIGINT)
            assert heard == [signal.SIGINT]
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with interrupts.listening(signal.SIGINT):
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, previous)


@pytest.mark.parametrize("loses", ["raise RuntimeError('lost') from None", "pass"])
def test_an_interrupted_command_ends_with_130_wherever_the_interrupt_came(
    tmp_path: Path, loses: str
) -> None:
    (tmp_path / "own.py").write_text(OWN.format(loses=loses))
    command = [sys.executable, "-m", "edgecompress.cli.app", "train", "own.py:net", "-o", "t"]
    ended = subprocess.run(
        ["env", "--default-signal=INT", *command, "--image-size", "8", "--epochs", "1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 130, ended.stderr
    assert "interrupted" in ended.stderr
    assert not (tmp_path / "t" / "result.json").exists()


def test_a_command_that_is_interrupted_while_it_is_imported_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n\n\n"
        "class Finder:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == 'edgecompress.cli.app':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n\n\n"
        "sys.meta_path.insert(0, Finder())\n"
    )
    ended = subprocess.run(
        ["env", "--default-signal=INT", sys.executable, "-m", "edgecompress", "models"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")
