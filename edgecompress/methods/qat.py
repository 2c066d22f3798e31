"""Quantization-aware fine-tuning: the network computes on the int8 grid that ONNX Runtime will use,
and adapts to it.

The input of every convolution and linear layer is rounded to uint8 (per tensor), its weight to int8
(symmetric, per output channel), with straight-through gradients (Bengio et al. 2013; Jacob et al.
2018):

    q = clip(round(x / scale) + zero_point, low, high);   x' = (q - zero_point) scale
    dx'/dx = 1 inside the range, 0 outside

A BatchNorm after a convolution scales entire output channels, so folding it at the export does not
move the weight's grid.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.func import functional_call

from edgecompress.core import layers
from edgecompress.train.modes import Inputs, evaluating, hooked

MOMENTUM = 0.99
"""Share of an activation's range that remains when a training batch moves it."""
LEVELS = 255
"""Steps of a uint8 activation."""
CHUNK = 64
"""Samples per forward pass of the calibration."""


def straight_through(x: Tensor, scale: Tensor, zero: Tensor, low: int, high: int) -> Tensor:
    """`x` (...) on the grid of `scale` and `zero` (broadcastable to it), clipped to `low`..`high`
    steps; gradients pass inside the range (Bengio et al. 2013).
    """
    steps = x / scale + zero
    rounded = steps + (steps.round() - steps).detach()
    return (rounded.clamp(low, high) - zero) * scale


def weight_on_grid(layer: nn.Module, reduce_range: bool) -> Tensor:
    """The weight (O, I, ...) of a mixing layer on its int8 grid: symmetric around 0, one scale per
    output channel; 7 bits with `reduce_range`.
    """
    weight = layer.get_parameter("weight")
    most = 64 if reduce_range else 127
    magnitudes = weight.detach().abs()
    if layers.is_conv(layer) and getattr(layer, "transposed", False):
        # (in, out / groups, ...): the file has one scale for all groups of a transposed convolution
        grouped = layer.groups != 1
        axes = [axis for axis in range(weight.dim()) if grouped or axis != 1]
        limit = magnitudes.amax(axes, keepdim=True)
    else:
        limit = magnitudes.flatten(1).amax(1).reshape([-1, *[1] * (weight.dim() - 1)])
    scale = (limit / most).clamp_min(1e-12)
    return straight_through(weight, scale, torch.zeros_like(limit), -most, most)


class QuantAware(nn.Module):
    """`model` on the int8 grid. The ranges of activations follow the batches in training mode, and
    are constant in eval mode.

    `names` are its mixing layers; buffers `low` and `high` (layers,) are the ranges of their
    inputs.
    """

    def __init__(self, model: nn.Module, *, reduce_range: bool = False) -> None:
        super().__init__()
        self.model = model
        self.reduce_range = reduce_range
        self.names = [name for name, layer in model.named_modules() if layers.is_mixing(layer)]
        self.register_buffer("low", torch.zeros(len(self.names)))
        self.register_buffer("high", torch.zeros(len(self.names)))

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (N, K) for `x` (N, ...), on the grid."""
        weights = {
            f"{name}.weight": weight_on_grid(self.model.get_submodule(name), self.reduce_range)
            for name in self.names
        }
        with self._with_inputs(self._on_grid):
            output: Tensor = functional_call(self.model, weights, (x,))
        return output

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        """Extend the ranges to the extremes of the layers' inputs for `x` (N, ...), in float."""
        low, high = self._ranges()

        def observe(number: int, value: Tensor) -> Tensor:
            low[number] = torch.minimum(low[number], value.min())
            high[number] = torch.maximum(high[number], value.max())
            return value

        with evaluating(self.model), self._with_inputs(observe):
            for chunk in x.split(CHUNK):
                self.model(chunk)

    def scales(self) -> dict[str, tuple[float, int]]:
        """For each layer the scale and zero point (0..255) of its input."""
        scales = {}
        for number, name in enumerate(self.names):
            scale, zero = self._grid(number)
            scales[name] = (float(scale), int(zero))
        return scales

    def fix(self, scales: dict[str, tuple[float, int]]) -> None:
        """Set the ranges to those that `scales` returned."""
        low, high = self._ranges()
        for number, name in enumerate(self.names):
            scale, zero = scales[name]
            low[number] = -zero * scale
            high[number] = (LEVELS - zero) * scale

    def _ranges(self) -> tuple[Tensor, Tensor]:
        return self.get_buffer("low"), self.get_buffer("high")

    def _grid(self, number: int) -> tuple[Tensor, Tensor]:
        """Scale and zero point, scalars, of the input of layer `number`."""
        low, high = self._ranges()
        scale = ((high[number] - low[number]) / LEVELS).clamp_min(1e-8)
        return scale, (-low[number] / scale).round().clamp(0, LEVELS)

    def _on_grid(self, number: int, value: Tensor) -> Tensor:
        """The input `value` of layer `number` on its grid, whose range follows it in training."""
        if self.training:
            self._move_range(number, value)
        scale, zero = self._grid(number)
        return straight_through(value, scale, zero, 0, LEVELS)

    @torch.no_grad()
    def _move_range(self, number: int, value: Tensor) -> None:
        """Move the range towards that of `value`; it always contains 0."""
        low, high = self._ranges()
        low[number].lerp_(value.min().to(low), 1 - MOMENTUM)
        high[number].lerp_(value.max().to(high), 1 - MOMENTUM)
        low[number].clamp_(max=0)
        high[number].clamp_(min=0)

    def _with_inputs(self, change: Callable[[int, Tensor], Tensor]) -> AbstractContextManager[None]:
        """Inside the context, every mixing layer reads `change(its number, its input)`."""

        def hook(number: int) -> Callable[[nn.Module, Inputs], Inputs]:
            return lambda _, inputs: (change(number, inputs[0]), *inputs[1:])

        return hooked(
            self.model.get_submodule(name).register_forward_pre_hook(hook(number))
            for number, name in enumerate(self.names)
        )
