"""The table of formats."""

from __future__ import annotations

import pytest

from edgecompress.formats import BY_CHOICE, FORMATS, LOW, ORDINARY, bits_by_layer, named


def test_the_edges_of_a_network_keep_8_bits() -> None:
    assert bits_by_layer("int4", ["a", "b", "c", "d"]) == {"a": 8, "b": 4, "c": 4, "d": 8}
    assert bits_by_layer("int2", ["a"]) == {"a": 8}
    assert bits_by_layer("int4", []) == {}


@pytest.mark.parametrize("form", ORDINARY)
def test_other_formats_are_the_same_everywhere(form: str) -> None:
    assert set(bits_by_layer(form, ["a", "b", "c"]).values()) == {FORMATS[form].bits}


def test_choices_name_formats() -> None:
    assert named("int8") == named("auto") == "int8-qdq"
    assert named("none") == "fp32"
    assert {form.name for form in BY_CHOICE.values()} == set(FORMATS)
    assert {name for name, form in FORMATS.items() if form.is_low} == {*LOW, "mixed"}
