"""What commands show while they work: bars on a terminal, lines in a log."""

from __future__ import annotations

import contextlib
import os
import pty
import sys
from collections.abc import Callable

import numpy as np
import pytest

from edgecompress.cli.bench import Progress
from edgecompress.cli.console import Bars
from edgecompress.measure.bootstrap import Interval
from edgecompress.measure.processes import Measured


def test_the_number_of_stages_that_was_announced_stays(capsys: pytest.CaptureFixture[str]) -> None:
    bars = Bars(quiet=False)
    for number, total in ((1, 8), (4, 8), (5, 10), (10, 10)):
        bars.stage(number, total, "work")
    bars.close()
    said = capsys.readouterr().err.splitlines()
    assert said == ["[1/8] work", "[4/8] work", "[5/8+2] work", "[10/8+2] work"]


def drawn_by(work: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> str:
    """What `work` writes to stderr where that is a real terminal (a pty)."""
    shown, terminal = pty.openpty()
    with monkeypatch.context() as patched, os.fdopen(terminal, "w") as stream:
        patched.delenv("CI", raising=False)
        patched.setenv("TERM", "xterm")
        patched.setenv("COLUMNS", "100")
        patched.setattr(sys, "stderr", stream)
        work()
    drawn = b""
    with contextlib.suppress(OSError):  # what is left, then the end: the terminal is closed
        while part := os.read(shown, 100_000):
            drawn += part
    os.close(shown)
    return drawn.decode()


def test_a_terminal_shows_a_bar_and_a_log_shows_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a terminal epochs move a bar with the time left, and leave no line."""

    def train() -> None:
        bars = Bars(quiet=False)
        bars.stage(1, 1, "train")
        bars.step(30, 100, "train lenet5")
        if bars.progress is not None:
            bars.progress.refresh()
        bars.epoch("train: epoch 1/3, loss 2.1")
        bars.close()

    drawn = drawn_by(train, monkeypatch)
    assert "[1/1] train" in drawn
    assert "train lenet5" in drawn and "30%" in drawn and "━" in drawn
    assert "epoch 1/3" not in drawn
    train()
    assert capsys.readouterr().err.splitlines() == [
        "[1/1] train",
        "      train: epoch 1/3, loss 2.1",
    ]


def test_bench_shows_its_interval_while_it_measures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a terminal one line that replaces itself, in a log a line every ten seconds."""
    ratio = Interval(1.0, 0.98, 1.02)

    def measure() -> None:
        progress = Progress(120)
        for processes, spent_s in ((1, 2.0), (2, 4.0), (6, 12.0), (7, 14.0)):
            progress(processes, ratio, spent_s)
        progress.close()

    drawn = drawn_by(measure, monkeypatch)
    assert drawn.count("\r\x1b[K") == 5 and "\n" not in drawn
    assert "no interval yet" in drawn and "95 % " in drawn
    measure()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("bench: 6 process(es), 12 of at most 120 s: ratio 1.000 (95 % ")


def test_bench_shows_its_latency_while_it_measures_one_file(
    capsys: pytest.CaptureFixture[str],
) -> None:
    samples = np.array([1.0, 2.0, 9.0])
    measured = Measured((np.array([[1.0]]),) * 3, (samples,), threads=1, reference_ms=1.0)
    progress = Progress(120)
    progress.alone(measured, 11.0)
    progress.close()
    line = "bench: 3 process(es), 11 of at most 120 s: p50 2.0000 ms\n"
    assert capsys.readouterr().err == line
