"""What the stages decide, without training: which format ships, what was missed, what may be
made.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgecompress.errors import UsageError
from edgecompress.measure.bootstrap import Interval
from edgecompress.proportions import Paired
from edgecompress.run.state import FormatRow, SizePlan
from edgecompress.stages.measure.work import missed_targets
from edgecompress.stages.quantize import QuantizeStage
from edgecompress.stages.quantize.choose import choose, figures
from edgecompress.stages.quantize.work import formats

AUTO = QuantizeStage()


def row(form: str, size: int, accuracy: float, p50_ms: float) -> FormatRow:
    return FormatRow(form, f"{form}.onnx", size, accuracy, p50_ms)


def once(first: FormatRow, second: FormatRow) -> Interval:
    """Latencies without noise."""
    ratio = first.p50_ms / second.p50_ms
    return Interval(ratio, ratio, ratio)


def test_a_slow_small_file_loses_to_a_fast_one() -> None:
    rows = [row("fp32", 400, 0.9, 1.0), row("fp16", 200, 0.9, 3.0), row("int8-qdq", 100, 0.9, 2.0)]
    assert choose(rows, None, AUTO, once)[0].format == "fp32"


def test_a_file_that_is_faster_in_one_process_alone_does_not_ship() -> None:
    """Where a model lands in memory differs from process to process."""
    rows = [row("fp32", 400, 0.9, 1.0), row("int8-qdq", 100, 0.9, 2.0)]

    def unsure(first: FormatRow, second: FormatRow) -> Interval:
        assert (first.format, second.format) == ("fp32", "int8-qdq")
        return Interval(0.7, 0.5, 1.2)

    chosen, why = choose(rows, None, AUTO, unsure)
    assert chosen.format == "int8-qdq"
    assert "fp32 takes 0.70 of the time of int8-qdq (95 % 0.50 to 1.20)" in why
    chosen, why = choose(rows, None, AUTO, once)
    assert chosen.format == "fp32"
    assert "fp32 takes 0.50 of the time of int8-qdq" in why


def test_of_equally_fast_files_the_smallest_ships() -> None:
    rows = [
        row("fp32", 400, 0.9, 1.0),
        row("fp16", 200, 0.9, 1.05),
        row("int8-qdq", 100, 0.9, 1.05),
    ]
    chosen, why = choose(rows, None, AUTO, once)
    assert chosen.format == "int8-qdq"
    assert why == "int8-qdq is the smallest within 1.0% of the best"
    assert figures(chosen, 127) == "127 bytes, 0.9000 on validation, p50 1.050 ms"


def test_int8_that_loses_more_than_a_point_does_not_ship() -> None:
    rows = [row("fp32", 400, 0.9, 1.0), row("int8-qdq", 100, 0.85, 0.3)]
    assert choose(rows, None, AUTO, once)[0].format == "fp32"


def paired_row(form: str, size: int, lost: int, count: int, p50_ms: float = 1.0) -> FormatRow:
    """A row that is wrong on `lost` of `count` images on which fp32 is right."""
    plain = row(form, size, 1 - lost / count, p50_ms)
    return replace(plain, against_fp32=Paired(count, lost, 0))


def test_int8_that_loses_one_image_of_forty_ships_and_the_reason_says_what_was_compared() -> None:
    rows = [paired_row("fp32", 400, 0, 40), paired_row("int8-qdq", 100, 1, 40)]
    chosen, why = choose(rows, None, AUTO, once)
    assert chosen.format == "int8-qdq"
    assert "not clearly more than 1.0% below fp32" in why
    assert "within 1.0% of the best" not in why, "it is 2.5 points below"


def test_int8_that_clearly_loses_more_does_not_ship() -> None:
    rows = [paired_row("fp32", 400, 0, 4000), paired_row("int8-qdq", 100, 100, 4000)]
    assert choose(rows, None, AUTO, once)[0].format == "fp32"


def test_nothing_is_near_an_fp32_file_that_is_itself_worse() -> None:
    better = replace(row("int8-qdq", 100, 1.0, 1.0), against_fp32=Paired(40, 0, 4))
    rows = [replace(row("fp32", 400, 0.9, 0.1), against_fp32=Paired(40, 0, 0)), better]
    assert choose(rows, None, AUTO, once)[0].format == "int8-qdq"


def test_a_format_above_the_byte_target_does_not_ship() -> None:
    rows = [row("fp32", 400, 0.9, 0.5), row("fp16", 200, 0.9, 3.0)]
    planned = SizePlan(prune=True, formats=("fp32", "fp16"), bytes=300)
    assert choose(rows, planned, AUTO, once)[0].format == "fp16"


def test_a_forced_format_ships() -> None:
    rows = [row("fp32", 400, 0.9, 0.5), row("int8-qdq", 100, 0.2, 3.0)]
    assert choose(rows, None, QuantizeStage(quantize="int8"), once)[0].format == "int8-qdq"


def test_formats_follow_the_plan() -> None:
    assert formats(AUTO, None) == ["fp32", "fp16", "int8-qdq"]
    assert formats(AUTO, SizePlan(prune=True, formats=("int8-qdq",))) == ["fp32", "int8-qdq"]
    assert formats(QuantizeStage(quantize="none"), None) == ["fp32"]


def test_every_missed_target_is_named() -> None:
    plan = SizePlan(
        prune=True,
        formats=("int8-qdq",),
        bytes=100,
        macs=10,
        latency_s=0.001,
        max_drop=0.01,
        smallest_bytes=90,
    )
    sure = Paired(100, only_first=3, only_second=1)
    missed = missed_targets(plan, size=101, macs=11, p50_s=0.002, drop=0.02, sure=sure)
    low, high = (100 * bound for bound in sure.interval)
    assert f"fell by 2.00% (95 % {-high:.2f} to {-low:.2f}, n 100), more than" in missed[-1]
    missed = missed_targets(plan, size=101, macs=11, p50_s=0.002, drop=0.02)
    assert len(missed) == 4
    assert missed_targets(plan, size=100, macs=10, p50_s=0.001, drop=0.01) == ()
    assert "90 B" in missed[0]


def test_a_refused_format_is_named_and_the_next_one_ships() -> None:
    rows = [row("fp32", 400, 0.9, 0.5), row("int8-qdq", 100, 0.9, 0.3)]
    chosen, why = choose(rows, None, AUTO, once, {"fp16": "it crashes"})
    assert chosen.format == "int8-qdq"
    assert "no fp16" in why
    with pytest.raises(UsageError, match="no fp16: it crashes"):
        choose(rows[:1], None, QuantizeStage(quantize="fp16"), once, {"fp16": "it crashes"})


def test_a_file_larger_than_an_equally_accurate_fp32_does_not_ship() -> None:
    """However fast it seems: that of a network so small is noise."""
    rows = [row("fp32", 400, 0.9, 1.0), row("fp16", 450, 0.9, 0.9), row("int8-qdq", 900, 0.9, 0.2)]
    chosen, why = choose(rows, None, AUTO, once)
    assert chosen.format == "fp32"
    assert "int8-qdq would be larger (900 bytes)" in why
    assert choose(rows, None, QuantizeStage(quantize="int8"), once)[0].format == "int8-qdq"
    more_accurate = [rows[0], row("int8-qdq", 900, 0.95, 0.2)]
    assert choose(more_accurate, None, AUTO, once)[0].format == "int8-qdq"
