"""Bits for each layer: where fewer cost little, so that others can have more.

The error of a choice is what it does to the outputs when one layer alone has it, on training images
(as in ZeroQ, Cai et al. 2020); errors of several layers are taken to add up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from edgecompress.core import grid
from edgecompress.train.modes import evaluating

WIDTHS = (8, 4, 2)
"""Bits that a layer may have, the most first."""
CHUNK = 64
UNITS = 5000
"""Into how many parts a budget is divided."""

Errors = Mapping[str, Mapping[int, float]]
"""{layer: {bits: mean square error of the outputs}}; 8 bits have none."""


@torch.no_grad()
def output_errors(
    model: nn.Module, layers: Sequence[str], images: Tensor
) -> dict[str, dict[int, float]]:
    """The mean square error of the outputs of `model` for `images` (N, ...), with the weight of one
    of `layers` rounded to 4 or 2 bits, over the variance of the outputs.
    """
    with evaluating(model):
        plain = _outputs(model, images, {})
        spread = float(plain.var().clamp_min(1e-12))
        errors: dict[str, dict[int, float]] = {}
        for name in layers:
            layer = model.get_submodule(name)
            weight = layer.get_parameter("weight")
            errors[name] = {8: 0.0}
            for bits in grid.LOW_BITS:
                rows, shape = grid.channels(layer, weight)
                step = grid.fitted_steps(rows, bits).reshape(shape)
                rounded = grid.rounded(weight, step, bits)
                outputs = _outputs(model, images, {f"{name}.weight": rounded})
                errors[name][bits] = float((outputs - plain).square().mean()) / spread
    return errors


def _outputs(model: nn.Module, images: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    parts = [functional_call(model, dict(weights), (chunk,)) for chunk in images.split(CHUNK)]
    return torch.cat(parts)


def assigned(errors: Errors, weights: Mapping[str, int], budget: float) -> dict[str, int]:
    """Bits of each layer whose `weights` (numbers of values) take at most `budget` bytes in all,
    with the least sum of errors; the fewest bits where that is out of reach.

    A knapsack, solved exactly for sizes that are rounded up to one in `UNITS` of the budget.
    """
    fewest = dict.fromkeys(errors, WIDTHS[-1])
    if sum(weights[name] * width / 8 for name, width in fewest.items()) > budget:
        return fewest
    unit = max(budget, 1) / UNITS
    least = np.zeros(UNITS + 1)  # of the layers so far, by the units that are left for them
    choices = []
    for name in errors:
        options = np.full((len(WIDTHS), UNITS + 1), np.inf)
        for number, width in enumerate(WIDTHS):
            size = math.ceil(weights[name] * width / 8 / unit)
            if size <= UNITS:
                options[number, size:] = least[: UNITS + 1 - size] + errors[name][width]
        choices.append(options.argmin(0))
        least = options.min(0)
    if not np.isfinite(least[UNITS]):
        return fewest  # what rounding takes is not there
    bits, left = dict[str, int](), UNITS
    for name, choice in zip(reversed([*errors]), reversed(choices), strict=True):
        bits[name] = WIDTHS[int(choice[left])]
        left -= math.ceil(weights[name] * bits[name] / 8 / unit)
    return {name: bits[name] for name in errors}
