"""Grids of 4 and 2 bits: nearest integers, and steps that leave what is on a grid where it is."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from edgecompress.core import grid

VALUES = {4: set(range(-7, 8)), 2: {-3, -1, 1, 3}}


def _normal(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@given(st.sampled_from(grid.LOW_BITS), st.integers(0, 1000), st.floats(0.1, 20))
def test_the_nearest_integer_of_the_grid_is_nearest(bits: int, seed: int, spread: float) -> None:
    x = _normal(seed, 200) * spread
    found = grid.nearest(x, bits)
    assert {int(value) for value in found} <= VALUES[bits]
    options = torch.tensor(sorted(VALUES[bits]), dtype=torch.float64)
    least = (x[:, None] - options).abs().amin(1)
    torch.testing.assert_close((x - found).abs(), least)


@given(st.sampled_from(grid.LOW_BITS), st.integers(0, 1000), st.integers(1, 60))
def test_weights_on_a_grid_stay_there(bits: int, seed: int, columns: int) -> None:
    """Whatever step and sign the export gave each channel, in float32."""
    generator = torch.Generator().manual_seed(seed)
    options = torch.tensor(sorted(VALUES[bits]))
    picked = torch.randint(len(options), (6, columns), generator=generator)
    factor = torch.randn(6, 1, generator=generator)
    rows = options[picked].float() * factor
    steps = grid.fitted_steps(rows, bits)
    rounded = grid.nearest(rows / steps[:, None], bits) * steps[:, None]
    torch.testing.assert_close(rounded, rows, rtol=1e-5, atol=1e-9)


@given(st.sampled_from(grid.LOW_BITS), st.integers(0, 1000))
def test_a_fitted_step_is_no_worse_than_that_of_the_largest_weight(bits: int, seed: int) -> None:
    rows = _normal(seed, 5, 72)
    steps = grid.fitted_steps(rows, bits)
    widest = rows.abs().amax(1) / grid.MOST[bits]

    def error(step: torch.Tensor) -> torch.Tensor:
        rounded = grid.nearest(rows / step[:, None], bits) * step[:, None]
        return (rounded - rows).square().sum(1)

    assert bool((error(steps) <= error(widest) + 1e-12).all())
    if bits == 2:
        assert bool((error(steps) < error(widest)).all())


def test_pruned_weights_do_not_move_the_step_of_two_bits() -> None:
    rows = torch.tensor([[-0.3, 0.1, 0.0, 0.0, 0.3, -0.1, 0.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(grid.fitted_steps(rows, 2), torch.tensor([0.1]))


@pytest.mark.parametrize("bits", grid.LOW_BITS)
def test_pruned_weights_stay_pruned(bits: int) -> None:
    weight = torch.tensor([[0.0, 0.29, -0.11, 0.0]])
    rounded = grid.rounded(weight, torch.tensor([[0.1]]), bits)
    assert rounded[0, 0] == rounded[0, 3] == 0
    torch.testing.assert_close(rounded[0, 1:3], torch.tensor([0.3, -0.1]))


def test_zeros_have_a_step() -> None:
    assert bool((grid.fitted_steps(torch.zeros(3, 9), 2) > 0).all())


@pytest.mark.parametrize(
    ("layer", "rows"),
    [
        (nn.Linear(6, 4), 4),
        (nn.Conv2d(6, 4, 3), 4),
        (nn.Conv1d(6, 4, 3, groups=2), 4),
        (nn.ConvTranspose2d(6, 4, 2), 4),
        (nn.ConvTranspose2d(6, 4, 2, groups=2), 1),
    ],
)
def test_a_row_is_an_output_channel(layer: nn.Module, rows: int) -> None:
    weight = layer.get_parameter("weight").detach()
    found, shape = grid.channels(layer, weight)
    assert found.shape == (rows, weight.numel() // rows)
    steps = torch.arange(1, rows + 1).float()
    torch.testing.assert_close(
        grid.channels(layer, weight * steps.reshape(shape))[0], found * steps[:, None]
    )
