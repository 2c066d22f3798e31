"""Metadata of files from anywhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgecompress.errors import UsageError
from edgecompress.measure.metadata import Metadata

FOUND = Metadata(
    Path("m.onnx"),
    {
        "edgecompress.size": "32",
        "edgecompress.flag": "true",
        "edgecompress.mean": "[0.5, 1]",
        "edgecompress.names": '["a", "b"]',
        "edgecompress.word": "not JSON",
        "other.size": "1",
    },
)


def test_values_have_the_type_that_is_asked_for() -> None:
    assert FOUND.integer("size") == 32
    assert FOUND.number("size") == 32.0
    assert FOUND.numbers("mean") == [0.5, 1.0]
    assert FOUND.texts("names") == ["a", "b"]
    assert FOUND.text("word") == "not JSON"
    assert "size" in FOUND
    assert FOUND.integer("missing") is FOUND.texts("missing") is None


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ("integer", "mean"),
        ("integer", "flag"),
        ("integers", "mean"),
        ("numbers", "names"),
        ("number", "word"),
        ("texts", "size"),
        ("text", "names"),
    ],
)
def test_a_value_of_another_type_is_named(kind: str, key: str) -> None:
    with pytest.raises(UsageError, match=rf"'m\.onnx' has {key} .* in its metadata: export it"):
        getattr(FOUND, kind)(key)
