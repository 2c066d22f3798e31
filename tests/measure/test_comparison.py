"""Two files measured together."""

from __future__ import annotations

from pathlib import Path

from edgecompress.measure.comparison import compare
from edgecompress.measure.processes import Protocol, measure_until


def test_looks_at_or_below_the_first_processes_are_skipped(files: dict[str, Path]) -> None:
    protocol = Protocol(threads=1, processes=3, looks=(2, 3), blocks=5, block_ms=0.5)
    assert protocol.judged_after == {3}
    clear_at_once = measure_until([files["three"]], protocol, lambda _: True)
    assert len(clear_at_once.blocks_ms) == 3


def test_the_time_ends_a_measurement_and_says_so(files: dict[str, Path]) -> None:
    protocol = Protocol(threads=1, blocks=5, block_ms=0.5, time_s=0.1)
    result = compare(files["three"], files["one"], 0.05, protocol)
    assert result["processes"] == 1
    assert result["time_over"]
    assert result["verdict"] == "inconclusive", "one process says nothing of the next"
    assert result["ratio"]["ci95"] == [None, None]


def test_progress_is_called_after_each_process(files: dict[str, Path]) -> None:
    protocol = Protocol(threads=1, processes=3, looks=(), blocks=5, block_ms=0.5)
    seen = list[int]()
    compare(files["one"], files["one"], 0.5, protocol, lambda number, *_: seen.append(number))
    assert seen == [1, 2, 3]


def test_the_fastest_run_of_a_block_is_what_is_compared(files: dict[str, Path]) -> None:
    protocol = Protocol(threads=1, processes=2, looks=(), blocks=5, block_ms=1.0)
    result = compare(files["one"], files["three"], 0.5, protocol)
    fastest = min(min(blocks) for blocks in result["blocks_ms"]["candidate"])
    assert fastest <= result["candidate"]["p50_ms"]
