"""Transfer learning: which part of a network is frozen."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from edgecompress.core import layers
from edgecompress.errors import UsageError


def before_last(model: nn.Module, convolutions: int) -> tuple[str, ...]:
    """Names of the modules to freeze so that the last `convolutions` of them train, in order of
    registration.

    What trains are these convolutions, every module after the first of them, and every Linear
    layer. Raises `UsageError` when the network has fewer convolutions.
    """
    own = [
        (name, module)
        for name, module in model.named_modules()
        if any(True for _ in module.parameters(recurse=False))
    ]
    places = [place for place, (_, module) in enumerate(own) if layers.is_conv(module)]
    if convolutions > len(places):
        raise UsageError(
            f"train_last {convolutions}: {type(model).__name__} has {len(places)} "
            f"convolutions; allowed are 0..{len(places)}"
        )
    first = places[len(places) - convolutions] if convolutions else len(own)
    return tuple(name for name, module in own[:first] if not isinstance(module, nn.Linear))


def freeze_(model: nn.Module, names: Sequence[str]) -> bool:
    """Stop the gradients of all parameters of the modules `names`, in place. True if any required
    one.
    """
    thawed = [p for p in _parameters_in(model, names) if p.requires_grad]
    for parameter in thawed:
        parameter.requires_grad_(False)
    return bool(thawed)


def thaw_(model: nn.Module, names: Sequence[str]) -> None:
    """Let all parameters of the modules `names` require gradients, in place."""
    for parameter in _parameters_in(model, names):
        parameter.requires_grad_(True)


def _parameters_in(model: nn.Module, names: Sequence[str]) -> list[nn.Parameter]:
    return [parameter for name in names for parameter in model.get_submodule(name).parameters()]
