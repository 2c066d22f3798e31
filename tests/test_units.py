from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecompress import units
from edgecompress.errors import UsageError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4MB", 4_000_000),
        ("4MiB", 4_194_304),
        ("250KB", 250_000),
        ("1.5kB", 1500),
        ("12B", 12),
        ("1 GB", 10**9),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert units.parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["4", "0MB", "-3MB", "MB", "", "4 megabytes", "4mb", "nanMB", "1e400MB", "0.1B"]
)
def test_bad_sizes_name_the_value_and_the_fix(text: str) -> None:
    with pytest.raises(UsageError, match=r"write it like|allowed are") as caught:
        units.parse_size(text)
    assert "\n" not in str(caught.value)
    assert f"'{text}'" in str(caught.value)


def test_durations_shares_and_counts() -> None:
    assert units.parse_duration("5ms") == pytest.approx(0.005)
    assert units.parse_duration("1.5min") == 90
    assert units.parse_share("1%") == pytest.approx(0.01)
    assert units.parse_share("0.25") == 0.25
    assert units.parse_count("10M") == 10_000_000
    for parse, text in (
        (units.parse_duration, "5"),
        (units.parse_share, "101%"),
        (units.parse_share, "-1%"),
        (units.parse_count, "3x"),
    ):
        with pytest.raises(UsageError):
            parse(text)


@given(st.integers(1, 10**15))
def test_plain_bytes_survive(size: int) -> None:
    assert units.parse_size(f"{size}B") == size


def test_formatting() -> None:
    assert units.format_size(3_990_323) == "3.99 MB"
    assert units.format_size(537_200_000) == "537.2 MB"
    assert units.format_count(134_301_514) == "134 M"
    assert units.format_duration(125) == "2 min 5 s"
