"""Values of recipes and options that are written with a unit: they become numbers when a recipe is
read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainSerializer

from edgecompress import units
from edgecompress.errors import UsageError


def _parsed_by(parse: Callable[[str], float]) -> Callable[[Any], Any]:
    """Accept text with a unit, or a number that is already parsed."""

    def convert(value: Any) -> Any:
        if isinstance(value, bool) or value is None or isinstance(value, (int, float)):
            return value
        try:
            return parse(str(value))
        except UsageError as error:
            raise ValueError(str(error)) from error

    return convert


def _size(value: Any) -> Any:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        raise ValueError(f"size '{value}' has no unit: write it like 4MB or 250KiB")
    return _parsed_by(units.parse_size)(value)


def _amount(value: Any) -> Any:
    """Checked, and kept as it was written."""
    if value is None or isinstance(value, bool):
        return value
    try:
        units.parse_amount(str(value))
    except UsageError as error:
        raise ValueError(str(error)) from error
    return str(value)


Size = Annotated[
    int,
    BeforeValidator(_size),
    Field(gt=0),
    PlainSerializer(lambda size: f"{size}B", when_used="json"),
]
"""Bytes: `4MB`, `250KiB`."""
Count = Annotated[int, BeforeValidator(_parsed_by(units.parse_count)), Field(gt=0)]
"""A number of things: `10M`."""
Seconds = Annotated[float, BeforeValidator(_parsed_by(units.parse_duration)), Field(gt=0)]
"""A duration: `5ms`."""
Share = Annotated[float, BeforeValidator(_parsed_by(units.parse_share)), Field(ge=0, le=1)]
"""A share: `10%` or `0.1`."""
Side = Annotated[int, Field(ge=8)]
"""The side of square images, in pixels."""
Threads = Annotated[int, Field(ge=1, le=256)]
"""A number of CPU threads."""
Natural = Annotated[int, Field(ge=0)]
"""A whole number that is not negative."""
Positive = Annotated[int, Field(ge=1)]
"""A whole number above 0."""
Above0 = Annotated[float, Field(gt=0)]
"""A number above 0."""
Amount = Annotated[str, BeforeValidator(_amount)]
"""`50%` of the parameters to remove, or what may be left: `2Mparams`, `10MMACs`, `4MB` (the fp32
file).
"""
