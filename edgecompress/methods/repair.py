"""Restore the activation statistics of a freshly cut network, without training.

A cut removes terms from every sum, so in a network without normalisation the signal fades from
layer to layer: VGG16 cut to a third of its bytes falls to chance. Scaling and shifting each output
channel back to its former mean and standard deviation, layer by layer in order of execution,
recovers most of the accuracy (the idea of REPAIR, Jordan et al. 2023, there used after merging):

    y' = (y - mean(y)) gain + mean,   gain = std / std(y), within 1/`GAIN_LIMIT`..`GAIN_LIMIT`

BatchNorms get new running statistics. Everything is measured on one batch of training images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from edgecompress.core import layers
from edgecompress.core.shrink import Keep, kept_positions
from edgecompress.train.modes import evaluating, hooked

Statistics = dict[str, tuple[Tensor, Tensor]]
"""Mean and standard deviation (C,) of each output channel of every mixing layer, by layer name."""

ForwardHook = Callable[..., Tensor | None]

GAIN_LIMIT = 10.0
"""A channel is scaled by at most this factor, and at least by its inverse."""
CONSTANT = 1e-8
"""A channel with at most this standard deviation is constant, and is not scaled."""


def repaired(model: nn.Module, small: nn.Module, keep: Keep, images: Tensor) -> nn.Module:
    """`small`, the network that `keep` cut from `model`, with the statistics of `model` on `images`
    (N, C, H, W); changed in place and returned.
    """
    positions = kept_positions(model, keep)
    kept = {name: axes["out"] for name, axes in positions.items() if "out" in axes}
    repair_(small, channel_statistics(model, images), kept, images)
    return small


def channel_statistics(model: nn.Module, images: Tensor) -> Statistics:
    """Statistics of every mixing layer's output for `images` (N, C, H, W) in eval mode; of a
    layer's first call, if it is called twice.
    """
    statistics: Statistics = {}

    def record(name: str) -> ForwardHook:
        def hook(layer: nn.Module, _: object, output: Tensor) -> None:
            if name not in statistics:
                statistics[name] = _moments(output, layer)

        return hook

    mixing = {m: record(n) for n, m in model.named_modules() if layers.is_mixing(m)}
    _run_with_hooks(model, images, mixing)
    return statistics


def repair_(
    small: nn.Module, before: Statistics, kept: Mapping[str, Tensor], images: Tensor
) -> None:
    """Restore the statistics `before` the cut to the channels of `small`, for `images`
    (N, C, H, W), in place. `kept` has the output channels (C,) bool of each cut layer that remain.

    A layer without bias is only scaled. The last layer is unchanged: its outputs are logits. A
    BatchNorm takes the statistics of `images`.
    """
    mixing = [name for name, module in small.named_modules() if layers.is_mixing(module)]
    hooks: dict[nn.Module, ForwardHook] = {}
    for name, module in small.named_modules():
        if isinstance(module, layers.BatchNorm) and module.track_running_stats:
            hooks[module] = _renormalise
        elif name in before and name != mixing[-1]:
            mean, std = before[name]
            remaining = kept.get(name, torch.ones(len(mean), dtype=torch.bool)).to(mean.device)
            hooks[module] = _match(mean[remaining], std[remaining])
    _run_with_hooks(small, images, hooks)


@torch.no_grad()
def _run_with_hooks(
    model: nn.Module, images: Tensor, hooks: Mapping[nn.Module, ForwardHook]
) -> None:
    handles = (module.register_forward_hook(hook) for module, hook in hooks.items())
    with evaluating(model), hooked(handles):
        model(images)


def _channel_dim(layer: nn.Module) -> int:
    return 1 if layers.is_conv(layer) else -1


def _moments(output: Tensor, layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (C,) of the channels of `output`."""
    channels = output.movedim(_channel_dim(layer), 0).flatten(1)  # (C, N * positions)
    return channels.mean(1), channels.std(1, unbiased=False)


def _match(mean: Tensor, std: Tensor) -> ForwardHook:
    """A hook that changes a layer so that its outputs have `mean` and `std` (C,)."""
    done: list[nn.Module] = []

    def hook(layer: nn.Module, _: object, output: Tensor) -> Tensor:
        if done:  # a layer called twice is matched on its first call
            return output
        done.append(layer)

        mean_now, std_now = _moments(output, layer)
        gain = (std / std_now.clamp_min(1e-12)).clamp(1 / GAIN_LIMIT, GAIN_LIMIT)
        varies = (std_now > CONSTANT) & (std > CONSTANT)
        gain = torch.where(varies, gain, torch.ones_like(gain))
        layer.get_parameter("weight").copy_(layers.scale_outputs(layer, gain))

        shape = [1] * output.dim()
        shape[_channel_dim(layer)] = -1
        bias = getattr(layer, "bias", None)
        if bias is None:
            return output * gain.reshape(shape)
        bias.detach().sub_(mean_now).mul_(gain).add_(mean)
        return (output - mean_now.reshape(shape)) * gain.reshape(shape) + mean.reshape(shape)

    return hook


def _renormalise(norm: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    """A hook that sets a BatchNorm's running statistics to those of its input (N, C, ...)."""
    x = inputs[0]
    channels = x.transpose(0, 1).flatten(1)  # (C, N * positions)
    mean = norm.get_buffer("running_mean")
    var = norm.get_buffer("running_var")
    mean.copy_(channels.mean(1))
    var.copy_(channels.var(1, unbiased=False))
    parameters = dict(norm.named_parameters(recurse=False))
    eps = float(getattr(norm, "eps", 1e-5))
    return nn.functional.batch_norm(
        x, mean, var, parameters.get("weight"), parameters.get("bias"), False, 0.0, eps
    )
