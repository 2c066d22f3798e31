"""Layer-sequential unit-variance initialisation (LSUV, Mishkin and Matas 2016) of plain networks.

Without BatchNorm, torchvision's VGG starts with Linear weights so small (std 0.01) that after 16
layers the signal has vanished and training does not start. Here every Linear and Conv layer gets
He-normal weights (He et al. 2015), scaled so that its output on one batch has unit variance.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgecompress.core import layers
from edgecompress.train.modes import evaluating, hooked

NORMS = (layers.BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm2d)


def has_norm(model: nn.Module) -> bool:
    """True when some layer normalises activations."""
    return any(isinstance(module, NORMS) for module in model.modules())


def unit_variance_init(model: nn.Module, batch: Tensor, head_gain: float = 0.1) -> None:
    """Initialise `model` in place from one `batch` (N, C, H, W), layer by layer in order of
    execution; biases become 0.

    The last layer's output has standard deviation `head_gain`, so that training starts near uniform
    predictions.
    """
    mixing = [module for module in model.modules() if layers.is_mixing(module)]
    for module in mixing:
        _he_normal_(module)
    last = _rescale_(model, mixing, batch)
    last.get_parameter("weight").data *= head_gain


@torch.no_grad()
def _he_normal_(layer: nn.Module) -> None:
    """Weights from N(0, 2 / fan_in), biases 0 (He et al. 2015, equation 10)."""
    nn.init.kaiming_normal_(layer.get_parameter("weight"), mode="fan_in", nonlinearity="relu")
    if getattr(layer, "bias", None) is not None:
        nn.init.zeros_(layer.get_parameter("bias"))


@torch.no_grad()
def _rescale_(model: nn.Module, mixing: list[nn.Module], batch: Tensor) -> nn.Module:
    """Divide the weights of the layers `mixing` by the deviation of their outputs for `batch`, in
    order of execution, each reading the rescaled outputs of those before. Returns the last layer.
    """
    executed: list[nn.Module] = []

    def rescale(layer: nn.Module, _: object, output: Tensor) -> Tensor:
        deviation = output.std().clamp_min(1e-8)
        layer.get_parameter("weight").data /= deviation
        executed.append(layer)
        return output / deviation

    hooks = (module.register_forward_hook(rescale) for module in mixing)
    with evaluating(model), hooked(hooks):
        model(batch)
    return executed[-1]
