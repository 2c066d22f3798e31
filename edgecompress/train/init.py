"""Initialisation of plain networks: layer-sequential unit variance (Mishkin and Matas 2016).

Without BatchNorm, torchvision's VGG starts with linear weights so small (std 0.01) that 16 layers
on, nothing is left of the signal and training does not start. Here every Linear and Conv gets
He-normal weights, scaled so that its output on one batch has unit variance.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgecompress.core import layers


def has_norm(model: nn.Module) -> bool:
    """True when some layer normalises activations."""
    kinds = (layers.BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm2d)
    return any(isinstance(m, kinds) for m in model.modules())


def unit_variance_init(model: nn.Module, batch: Tensor, head_gain: float = 0.1) -> None:
    """Initialise `model` in place from one `batch` (N, C, H, W), layer by layer in order of
    execution; biases become 0.

    The last layer's output has standard deviation `head_gain`, so that training starts near uniform
    predictions.
    """
    order: list[nn.Module] = []
    handles = []
    mixing = [m for m in model.modules() if layers.is_mixing(m)]
    for module in mixing:
        with torch.no_grad():
            nn.init.kaiming_normal_(
                module.get_parameter("weight"), mode="fan_in", nonlinearity="relu"
            )
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.get_parameter("bias"))

    def rescale(module: nn.Module, _: object, output: Tensor) -> Tensor:
        scale = output.std().clamp_min(1e-8)
        module.get_parameter("weight").data /= scale
        order.append(module)
        return output / scale

    was_training = model.training
    try:
        handles = [module.register_forward_hook(rescale) for module in mixing]
        with torch.no_grad():
            model.eval()(batch)
    finally:
        for handle in handles:
            handle.remove()
        model.train(was_training)
    order[-1].get_parameter("weight").data *= head_gain
