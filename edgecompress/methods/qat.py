"""Quantization-aware fine-tuning: the network computes on the int8 grid that ONNX Runtime will use,
and adapts to it.

The input of every convolution and linear layer is rounded to uint8 (per tensor), its weight to int8
(symmetric, per output channel), with straight-through gradients (Bengio et al. 2013; Jacob et al.
2018):

    q = clip(round(x / scale) + zero_point, low, high);   x' = (q - zero_point) scale
    dx'/dx = 1 inside the range, 0 outside

A BatchNorm after a convolution scales entire output channels, so folding it at the export does not
move the weight's grid.

A weight of 4 or 2 bits has a learned step for each output channel (LSQ, Esser et al. 2020), which
gets the gradient of the rounded weight:

    v = clip(w / step, -Q, Q);   w' = round(v) step;   dw'/dstep = round(v) - v inside, +-Q outside

and of that the share 1 / sqrt(weights * Q), so that steps move as weights do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.func import functional_call

from edgecompress.core import grid, layers
from edgecompress.train.modes import Inputs, evaluating, hooked

MOMENTUM = 0.99
"""Share of an activation's range that remains when a training batch moves it."""
LEVELS = 255
"""Steps of a uint8 activation."""
SPARSE = 0.3
"""A weight with so large a share of zeros was made sparse: they stay."""
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


def with_learned_step(weight: Tensor, step: Tensor, bits: int) -> Tensor:
    """`weight` (...) on the grid of `bits` bits with this `step`, which is broadcast to it;
    gradients reach both (Esser et al. 2020).
    """
    most = grid.MOST[bits]
    share = 1 / math.sqrt(max(1, weight.numel() // step.numel()) * most)
    step = step * share + (step - step * share).detach()
    step = step.abs().clamp_min(grid.SMALLEST)
    steps = (weight / step).clamp(-most, most)
    rounded = steps + (grid.nearest(steps, bits) - steps).detach()
    return rounded * step


class QuantAware(nn.Module):
    """`model` on the int8 grid. The ranges of activations follow the batches in training mode, and
    are constant in eval mode.

    `bits` names the layers whose weights have 4 or 2 bits, and a step that is learned. `names` are
    the mixing layers; buffers `low` and `high` (layers,) are the ranges of their inputs.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        reduce_range: bool = False,
        bits: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.reduce_range = reduce_range
        self.names = [name for name, layer in model.named_modules() if layers.is_mixing(layer)]
        first = dict[int, str]()  # a weight that two layers share has the grid of the first
        for name in self.names:
            first.setdefault(id(model.get_submodule(name).get_parameter("weight")), name)
        self._owners = [*first.values()]
        self.bits = {n: b for n, b in (bits or {}).items() if b in grid.LOW_BITS}
        self.steps = nn.ParameterList([self._first_step(name) for name in self.bits])
        self.sparse = [name for name in self.names if self._share_of_zeros(name) >= SPARSE]
        for number, name in enumerate(self.sparse):
            weight = model.get_submodule(name).get_parameter("weight")
            self.register_buffer(f"held{number}", weight != 0)
        self.register_buffer("low", torch.zeros(len(self.names)))
        self.register_buffer("high", torch.zeros(len(self.names)))

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (N, K) for `x` (N, ...), on the grid."""
        weights = {f"{name}.weight": self._weight(name) for name in self._owners}
        with self._with_inputs(self._on_grid):
            output: Tensor = functional_call(self.model, weights, (x,))
        return output

    def _weight(self, name: str) -> Tensor:
        """The weight of a layer on its grid, where a sparse one keeps its zeros."""
        weight = self._on_its_grid(name)
        if name not in self.sparse:
            return weight
        return weight * self.get_buffer(f"held{self.sparse.index(name)}")

    def _share_of_zeros(self, name: str) -> float:
        weight = self.model.get_submodule(name).get_parameter("weight").detach()
        return float((weight == 0).float().mean())

    def _on_its_grid(self, name: str) -> Tensor:
        layer = self.model.get_submodule(name)
        if name not in self.bits:
            return weight_on_grid(layer, self.reduce_range)
        weight = layer.get_parameter("weight")
        step = self.steps[[*self.bits].index(name)]
        _, shape = grid.channels(layer, weight)
        return with_learned_step(weight, step.reshape(shape), self.bits[name])

    def _first_step(self, name: str) -> nn.Parameter:
        layer = self.model.get_submodule(name)
        rows, _ = grid.channels(layer, layer.get_parameter("weight").detach())
        return nn.Parameter(grid.fitted_steps(rows, self.bits[name]))

    @torch.no_grad()
    def settle_(self) -> None:
        """Put the weights of less than 8 bits of the model where they are on their grid: it then
        computes in float with the weights of the file.
        """
        for name in self.bits:
            self.model.get_submodule(name).get_parameter("weight").copy_(self._weight(name))

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        """Extend the ranges to the extremes of the layers' inputs for `x` (N, ...), in float but
        for weights of less than 8 bits.
        """
        low, high = self._ranges()

        def observe(number: int, value: Tensor) -> Tensor:
            low[number] = torch.minimum(low[number], value.min())
            high[number] = torch.maximum(high[number], value.max())
            return value

        weights = {
            f"{name}.weight": self._weight(name) for name in self._owners if name in self.bits
        }
        with evaluating(self.model), self._with_inputs(observe):
            for chunk in x.split(CHUNK):
                functional_call(self.model, weights, (chunk,))

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
