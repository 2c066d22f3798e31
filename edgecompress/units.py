"""Sizes, durations, shares and counts: text to numbers, and back.

A size is in bytes: `4MB` = 4,000,000 and `4MiB` = 4,194,304. A duration is in seconds. A share is
0..1.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from edgecompress.errors import UsageError

_NUMBER = re.compile(r"^\s*([+-]?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)\s*([A-Za-zµ%]*)\s*$")
_SIZE: dict[str, float] = {
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
}
_DURATION = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}
_COUNT: dict[str, float] = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9}


def _parse(text: str, units: Mapping[str, float], what: str, example: str) -> float:
    """The positive number that `text`, a number with one of `units`, stands for."""
    match = _NUMBER.match(str(text))
    if match is None:
        raise UsageError(f"{what} '{text}' is not a number with a unit: write it like {example}")
    number = float(match.group(1))
    unit = match.group(2)
    if unit not in units:
        shown = "no unit" if unit == "" else f"the unknown unit '{unit}'"
        raise UsageError(
            f"{what} '{text}' has {shown}: allowed are {', '.join(u for u in units if u)}, "
            f"e.g. {example}"
        )
    if not math.isfinite(number) or number <= 0:
        raise UsageError(f"{what} '{text}' is not above zero: write it like {example}")
    return number * units[unit]


def parse_size(text: str) -> int:
    """Bytes of `4MB`, `250KB`, `4MiB`. Raises `UsageError` without a unit, or at or below zero."""
    size = int(_parse(text, _SIZE, "size", "4MB or 250KiB"))
    if size < 1:
        raise UsageError(f"size '{text}' is below one byte: write it like 4MB or 250KiB")
    return size


def parse_duration(text: str) -> float:
    """Seconds of `5ms`, `2s`, `1.5min`. Raises `UsageError` without a unit, or at or below zero."""
    return _parse(text, _DURATION, "duration", "5ms or 2s")


def parse_count(text: str) -> int:
    """A count of `10M`, `250k`, `1500` (of MACs or parameters). Raises `UsageError` at or below
    zero.
    """
    return int(_parse(text, _COUNT, "count", "10M or 250000"))


def parse_share(text: str) -> float:
    """A fraction in 0..1 of `1%` or `0.01`. Raises `UsageError` outside 0..1 (0 is allowed)."""
    match = _NUMBER.match(str(text))
    if match is None or match.group(2) not in ("", "%"):
        raise UsageError(f"share '{text}' is not a share: write it like 1% or 0.01")
    share = float(match.group(1)) / (100 if match.group(2) == "%" else 1)
    if not 0 <= share <= 1:
        raise UsageError(f"share '{text}' is outside 0..1: write it like 1% or 0.01")
    return share


def parse_amount(text: str) -> tuple[str, float]:
    """How far to prune: the share of the parameters to remove, `50%`, or what may be left: `2M
    params`, `10M MACs`, `4MB`.

    Returns `("share", 0.5)`, `("params", 2e6)`, `("macs", 1e7)` or `("bytes", 4e6)`. Raises
    `UsageError` for anything else.
    """
    plain = str(text).strip()
    for word, kind in (("params", "params"), ("macs", "macs")):
        if plain.lower().endswith(word):
            return kind, float(parse_count(plain[: -len(word)].strip()))
    match = _NUMBER.match(plain)
    if match is not None and match.group(2) in _SIZE:
        return "bytes", float(parse_size(plain))
    if match is not None and match.group(2) in ("", "%"):
        return "share", parse_share(plain)
    raise UsageError(
        f"amount '{text}' is not known: give 50% of the parameters to remove, or what is "
        "left: 2Mparams, 10MMACs, 4MB"
    )


def format_size(size: float) -> str:
    """Bytes as `4 MB`: decimal units, three digits; one decimal from 100 units on."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if abs(size) >= factor:
            scaled = size / factor
            return f"{scaled:.3g} {unit}" if scaled < 100 else f"{scaled:.1f} {unit}"
    return f"{size:.0f} B"


def format_count(count: float) -> str:
    """`134301514` as `134 M`: decimal prefixes, three digits."""
    for unit, factor in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if abs(count) >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count:.0f}"


def format_duration(duration_s: float) -> str:
    """Seconds as `1.2 ms`, `3.4 s` or `2 min 5 s`."""
    if duration_s < 1e-3:
        return f"{duration_s * 1e6:.3g} µs"
    if duration_s < 1:
        return f"{duration_s * 1e3:.3g} ms"
    if duration_s < 60:
        return f"{duration_s:.3g} s"
    minutes, seconds = divmod(round(duration_s), 60)
    return f"{minutes} min {seconds} s"
