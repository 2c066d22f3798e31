"""Grids of few bits: the integers that a weight may take, and the step between them.

A weight of 4 bits is one of -7 .. 7 steps, one of 2 bits one of -3, -1, 1, 3 (four levels without a
zero: the widest symmetric grid of 2 bits). Both are symmetric, so that a factor of an output
channel, such as that of a BatchNorm, moves its step and no weight on its grid.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgecompress.core import layers

LOW_BITS = (4, 2)
MOST = {4: 7, 2: 3}
"""The largest integer of each grid."""
SHARES = torch.linspace(0.2, 1.0, 65).tolist()
"""Steps that are tried, as shares of that which holds the largest weight."""
EXACT = 1e-3
"""Largest distance from the grid, in steps, of weights that are on it."""
SMALLEST = 1e-12


def nearest(x: Tensor, bits: int) -> Tensor:
    """The integers of the grid that are nearest to `x` (...), in steps."""
    most = MOST[bits]
    integers = 2 * torch.floor(x / 2) + 1 if bits == 2 else x.round()
    return integers.clamp(-most, most)


def rounded(weight: Tensor, step: Tensor, bits: int) -> Tensor:
    """`weight` (...) on its grid, in multiples of `step`, which is broadcast to it. Pruned weights,
    those of 0, stay, also on the grid that has no zero.
    """
    return torch.where(weight == 0, 0.0, nearest(weight / step, bits) * step)


def channels(layer: nn.Module, weight: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """The `weight` of a mixing layer as one row for each step that it has, (channels, K), and the
    shape of steps that are broadcast to it.

    A row is an output channel; a grouped transposed convolution has one step for all, since its
    file has one scale.
    """
    if layers.is_conv(layer) and getattr(layer, "transposed", False):
        ones = [1] * (weight.dim() - 2)
        if layer.groups != 1:
            return weight.reshape(1, -1), (1, 1, *ones)
        return weight.transpose(0, 1).flatten(1), (1, -1, *ones)
    return weight.flatten(1), (-1, *[1] * (weight.dim() - 1))


@torch.no_grad()
def fitted_steps(rows: Tensor, bits: int) -> Tensor:
    """A step (channels,) for each of `rows` (channels, K): that of weights which are on a grid
    already, else that with the least square error. Zeros stay zero where a layer is sparse, so they
    decide nothing on the grid without a zero.
    """
    most = MOST[bits]
    largest = rows.abs().amax(1).clamp_min(most * SMALLEST)
    best, least = largest / most, torch.full_like(largest, torch.inf)
    counted = rows != 0 if bits == 2 else torch.ones_like(rows, dtype=torch.bool)
    for share in SHARES:
        step = largest * (share / most)
        off = nearest(rows / step[:, None], bits) * step[:, None] - rows
        error = (off * counted).square().sum(1)
        best, least = torch.where(error < least, step, best), torch.minimum(error, least)
    for integer in range(most, 0, -1):
        step = largest / integer
        steps = rows / step[:, None]
        off = ((nearest(steps, bits) - steps) * counted).abs().amax(1)
        best = torch.where(off < EXACT, step, best)
    return best
