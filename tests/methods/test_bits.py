"""Bits for each layer: a budget, spent where it matters."""

from __future__ import annotations

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from edgecompress.methods.bits import UNITS, WIDTHS, assigned, output_errors

LAYERS = st.lists(
    st.tuples(st.integers(1, 5000), st.floats(1e-6, 1), st.floats(1, 50)), min_size=1, max_size=5
)


def _errors(rows: list[tuple[int, float, float]]) -> dict[str, dict[int, float]]:
    return {
        f"layer{n}": {8: 0.0, 4: four, 2: four * factor} for n, (_, four, factor) in enumerate(rows)
    }


@given(LAYERS, st.floats(0, 1))
def test_no_other_choice_within_the_budget_has_less_error(
    rows: list[tuple[int, float, float]], share: float
) -> None:
    """Against all choices; sizes are rounded up to one in `UNITS` of the budget for each layer."""
    errors = _errors(rows)
    counts = {f"layer{n}": count for n, (count, _, _) in enumerate(rows)}
    least, most = sum(counts.values()) / 4, sum(counts.values())
    budget = 0.9 * least + share * (1.1 * most - 0.9 * least)
    bits = assigned(errors, counts, budget)
    assert set(bits.values()) <= set(WIDTHS)
    if _taken(counts, bits) > budget:
        assert set(bits.values()) == {2} and least > budget
        return
    tight = budget * (1 - len(rows) / UNITS)
    for widths in itertools.product(WIDTHS, repeat=len(rows)):
        other = dict(zip(errors, widths, strict=True))
        if _taken(counts, other) <= tight:
            assert _total(errors, bits) <= _total(errors, other) * (1 + 1e-9)


def _taken(counts: dict[str, int], bits: dict[str, int]) -> float:
    return sum(counts[name] * width / 8 for name, width in bits.items())


def _total(errors: dict[str, dict[int, float]], bits: dict[str, int]) -> float:
    return sum(errors[name][width] for name, width in bits.items())


def test_the_layer_that_matters_keeps_its_bits() -> None:
    errors = {"a": {8: 0.0, 4: 1e-6, 2: 1e-5}, "b": {8: 0.0, 4: 0.1, 2: 0.9}}
    assert assigned(errors, {"a": 1000, "b": 1000}, 1300) == {"a": 2, "b": 8}


def test_errors_are_of_the_outputs() -> None:
    """A layer whose outputs nothing reads costs nothing; fewer bits cost more; the model stays."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.read, self.unread = nn.Linear(16, 8), nn.Linear(16, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            output: torch.Tensor = self.read(x) + 0 * self.unread(x)
            return output

    torch.manual_seed(0)
    model = Two()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    errors = output_errors(model, ["read", "unread"], torch.randn(100, 16))
    assert errors["unread"] == {8: 0.0, 4: 0.0, 2: 0.0}
    assert 0 < errors["read"][4] < errors["read"][2] < 1
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
