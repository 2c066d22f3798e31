"""Give a freshly cut network the activation statistics that it had before the cut; no training.

A cut takes terms out of every sum, so in a network without normalisation the signal fades from
layer to layer: VGG16 cut to a third of its bytes falls to chance. Scaling and shifting each output
channel back to its former mean and standard deviation, layer by layer in order of execution, brings
most of the accuracy back (the idea of REPAIR, Jordan et al. 2023, there used after merging).
BatchNorms get new running statistics. Everything is measured on one batch of training images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from edgecompress.core import layers
from edgecompress.core.shrink import Keep, kept_positions

Statistics = dict[str, tuple[Tensor, Tensor]]
"""Mean and standard deviation (C,) of each output channel of every mixing layer, by layer name."""

GAIN_LIMIT = 10.0
"""A channel is scaled by at most this factor, and at least by its inverse."""


def _moments(output: Tensor, layer: nn.Module) -> tuple[Tensor, Tensor]:
    channels = output.movedim(1 if layers.is_conv(layer) else -1, 0).flatten(1)
    return channels.mean(1), channels.std(1, unbiased=False)


def _run_with_hooks(
    model: nn.Module, images: Tensor, hooks: Mapping[nn.Module, Callable[..., Tensor | None]]
) -> None:
    handles = [module.register_forward_hook(hook) for module, hook in hooks.items()]
    was_training = model.training
    try:
        with torch.no_grad():
            model.eval()(images)
    finally:
        for handle in handles:
            handle.remove()
        model.train(was_training)


def channel_statistics(model: nn.Module, images: Tensor) -> Statistics:
    """Statistics of every mixing layer's output for `images` (N, C, H, W), in eval mode (of its
    first call, where it is called twice).
    """
    found: Statistics = {}

    def record(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, _: object, output: Tensor) -> None:
            if name not in found:
                found[name] = _moments(output, module)

        return hook

    _run_with_hooks(
        model, images, {m: record(n) for n, m in model.named_modules() if layers.is_mixing(m)}
    )
    return found


def repair_(
    small: nn.Module, before: Statistics, kept: Mapping[str, Tensor], images: Tensor
) -> None:
    """Bring the channels of `small` back to the statistics `before` the cut, in place; `kept` (C,)
    bool marks the channels that stayed.

    A layer without bias is only scaled. The last layer is left alone: its outputs are logits. A
    BatchNorm takes the statistics of `images`.
    """
    mixing = [n for n, m in small.named_modules() if layers.is_mixing(m)]
    hooks: dict[nn.Module, Callable[..., Tensor | None]] = {}
    for name, module in small.named_modules():
        if isinstance(module, layers.BatchNorm) and module.track_running_stats:
            hooks[module] = _renormalise
        elif name in before and name != mixing[-1]:
            mean, std = before[name]
            stayed = kept.get(name, torch.ones(len(mean), dtype=torch.bool)).to(mean.device)
            hooks[module] = _match(mean[stayed], std[stayed])
    _run_with_hooks(small, images, hooks)


def _match(mean: Tensor, std: Tensor) -> Callable[..., Tensor]:
    done: list[nn.Module] = []

    def hook(module: nn.Module, _: object, output: Tensor) -> Tensor:
        if done:  # a layer called twice is matched on its first call
            return output
        done.append(module)
        now, spread = _moments(output, module)
        gain = (std / spread.clamp_min(1e-12)).clamp(1 / GAIN_LIMIT, GAIN_LIMIT)
        gain = torch.where((spread > 1e-8) & (std > 1e-8), gain, torch.ones_like(gain))
        module.get_parameter("weight").copy_(layers.scale_outputs(module, gain))
        shape = [1] * output.dim()
        shape[1 if layers.is_conv(module) else -1] = -1
        bias = getattr(module, "bias", None)
        if bias is None:
            return output * gain.reshape(shape)
        bias.detach().sub_(now).mul_(gain).add_(mean)
        return (output - now.reshape(shape)) * gain.reshape(shape) + mean.reshape(shape)

    return hook


def _renormalise(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    x = inputs[0]
    channels = x.transpose(0, 1).flatten(1)
    mean, var = module.get_buffer("running_mean"), module.get_buffer("running_var")
    mean.copy_(channels.mean(1))
    var.copy_(channels.var(1, unbiased=False))
    parameters = dict(module.named_parameters(recurse=False))
    eps = float(getattr(module, "eps", 1e-5))
    return nn.functional.batch_norm(
        x, mean, var, parameters.get("weight"), parameters.get("bias"), False, 0.0, eps
    )


def repaired(model: nn.Module, small: nn.Module, keep: Keep, images: Tensor) -> nn.Module:
    """`small`, the network that `keep` cut from `model`, with the statistics of `model` on
    `images`; changed in place and returned.
    """
    kept = {
        name: axes["out"] for name, axes in kept_positions(model, keep).items() if "out" in axes
    }
    repair_(small, channel_statistics(model, images), kept, images)
    return small
