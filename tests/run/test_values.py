"""Values with units: texts become numbers, numbers stay, and errors say how to write them."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, ValidationError

from edgecompress.run.values import Amount, Count, Seconds, Share, Size


class Everything(BaseModel):
    size: Size = 1
    count: Count = 1
    seconds: Seconds = 1.0
    share: Share = 0.0
    amount: Amount = "50%"


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("size", "4MB", 4_000_000),
        ("count", "10M", 10_000_000),
        ("count", 250, 250),
        ("seconds", "1.5min", 90.0),
        ("seconds", 0.5, 0.5),
        ("share", "10%", 0.1),
        ("share", 1, 1.0),
        ("amount", "2Mparams", "2Mparams"),
    ],
)
def test_a_text_with_a_unit_is_a_number(name: str, text: object, value: object) -> None:
    assert getattr(Everything.model_validate({name: text}), name) == value


@pytest.mark.parametrize(
    ("name", "text", "part"),
    [
        ("size", 4_000_000, "has no unit: write it like 4MB"),
        ("size", "4 apples", "unknown unit 'apples'"),
        ("seconds", "60", "has no unit"),
        ("seconds", -1, "greater than 0"),
        ("share", "120%", "outside 0..1"),
        ("amount", "half", "half"),
    ],
)
def test_what_has_no_meaning_is_refused(name: str, text: object, part: str) -> None:
    with pytest.raises(ValidationError, match=part):
        Everything.model_validate({name: text})


def test_a_size_is_written_back_with_its_unit() -> None:
    assert Everything.model_validate({"size": "4KiB"}).model_dump(mode="json")["size"] == "4096B"
