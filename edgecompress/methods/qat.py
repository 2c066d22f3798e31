"""Quantization-aware fine-tuning: the network computes with the int8 grid that ONNX Runtime will
use, and learns around it.

What every convolution and linear layer reads is rounded to uint8 (per tensor), its weight to int8
(symmetric, per output channel), with straight-through gradients (Bengio et al. 2013; Jacob et al.
2018):

    q = clip(round(x / scale) + zero_point, low, high);   x' = (q - zero_point) scale
    dx'/dx = 1 inside the range, 0 outside

A BatchNorm after a convolution scales whole output channels, so folding it at the export does not
move the weight's grid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from edgecompress.core import layers

MOMENTUM = 0.99
"""Share of an activation's range that stays when a training batch moves it."""
LEVELS = 255
"""Steps of a uint8 activation."""


def straight_through(x: Tensor, scale: Tensor, zero: Tensor, low: int, high: int) -> Tensor:
    """`x` on the grid of `scale` and `zero` (broadcastable to it), clipped to `low`..`high` steps;
    gradients pass inside the range.
    """
    steps = x / scale + zero
    rounded = steps + (steps.round() - steps).detach()
    return (rounded.clamp(low, high) - zero) * scale


def weight_on_grid(layer: nn.Module, reduce_range: bool) -> Tensor:
    """The weight of a mixing layer on its int8 grid: symmetric around 0, a scale an output channel;
    7 bits with `reduce_range`.
    """
    weight, most = layer.get_parameter("weight"), 64 if reduce_range else 127
    transposed = layers.is_conv(layer) and getattr(layer, "transposed", False)
    # (in, out / groups, ...): ONNX Runtime has one scale for the whole weight of a transposed
    # convolution's groups
    if transposed:
        limit = weight.detach().abs().amax().reshape([1] * weight.dim())
    else:
        limit = weight.detach().abs().flatten(1).amax(1).reshape([-1, *[1] * (weight.dim() - 1)])
    return straight_through(
        weight, (limit / most).clamp_min(1e-12), torch.zeros_like(limit), -most, most
    )


class QuantAware(nn.Module):
    """`model` computing on the int8 grid. Ranges of activations follow the batches in training
    mode, and stand still in eval mode.
    """

    def __init__(self, model: nn.Module, *, reduce_range: bool = False) -> None:
        super().__init__()
        self.model, self.reduce_range = model, reduce_range
        self.names = [name for name, layer in model.named_modules() if layers.is_mixing(layer)]
        self.register_buffer("low", torch.zeros(len(self.names)))
        self.register_buffer("high", torch.zeros(len(self.names)))

    def forward(self, x: Tensor) -> Tensor:
        """Outputs of `x` on the grid."""
        weights = {
            f"{name}.weight": weight_on_grid(self.model.get_submodule(name), self.reduce_range)
            for name in self.names
        }
        with self._inputs(self._on_grid):
            output: Tensor = functional_call(self.model, weights, (x,))
        return output

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        """Set the ranges to the extremes of what the layers read for `x` (N, ...), in float."""

        def observe(number: int, value: Tensor) -> Tensor:
            self._range("low")[number] = torch.minimum(self._range("low")[number], value.min())
            self._range("high")[number] = torch.maximum(self._range("high")[number], value.max())
            return value

        was_training = self.model.training
        self.model.eval()
        with self._inputs(observe):
            for part in x.split(64):
                self.model(part)
        self.model.train(was_training)

    def scales(self) -> dict[str, tuple[float, int]]:
        """For each layer the scale and zero point (0..255) of what it reads."""
        found = {}
        for number, name in enumerate(self.names):
            scale, zero = self._grid(number)
            found[name] = (float(scale), int(zero))
        return found

    def fix(self, scales: dict[str, tuple[float, int]]) -> None:
        """Take back what `scales` gave."""
        for number, name in enumerate(self.names):
            scale, zero = scales[name]
            self._range("low")[number], self._range("high")[number] = (
                -zero * scale,
                (LEVELS - zero) * scale,
            )

    def _range(self, name: str) -> Tensor:
        return self.get_buffer(name)

    def _grid(self, number: int) -> tuple[Tensor, Tensor]:
        low, high = self._range("low")[number], self._range("high")[number]
        scale = ((high - low) / LEVELS).clamp_min(1e-8)
        return scale, (-low / scale).round().clamp(0, LEVELS)

    def _on_grid(self, number: int, value: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                for name, seen in (("low", value.min()), ("high", value.max())):
                    self._range(name)[number].lerp_(seen.to(self._range(name)), 1 - MOMENTUM)
                self._range("low")[number].clamp_(max=0)
                self._range("high")[number].clamp_(min=0)
        scale, zero = self._grid(number)
        return straight_through(value, scale, zero, 0, LEVELS)

    @contextmanager
    def _inputs(self, change: Callable[[int, Tensor], Tensor]) -> Iterator[None]:
        """While it lasts, every mixing layer reads `change(its number, what it would read)`."""

        def hook(number: int) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
            return lambda _, inputs: (change(number, inputs[0]), *inputs[1:])

        handles = [
            self.model.get_submodule(name).register_forward_pre_hook(hook(n))
            for n, name in enumerate(self.names)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
