"""Transfer learning: which part of a network stays as it is."""

from __future__ import annotations

from torch import nn

from edgecompress.core import layers
from edgecompress.errors import UsageError


def before_last(model: nn.Module, convolutions: int) -> tuple[str, ...]:
    """Names of the modules with parameters that come before the last so many convolutions, in the
    order of their registration.

    What trains are these convolutions, everything after the first of them, and every Linear layer.
    Raises `UsageError` when the network has fewer convolutions.
    """
    own = [
        (n, m) for n, m in model.named_modules() if any(True for _ in m.parameters(recurse=False))
    ]
    places = [place for place, (_, module) in enumerate(own) if layers.is_conv(module)]
    if convolutions > len(places):
        raise UsageError(
            f"train_last {convolutions}: {type(model).__name__} has {len(places)} "
            f"convolutions; allowed are 0..{len(places)}"
        )
    first = places[len(places) - convolutions] if convolutions else len(own)
    return tuple(name for name, module in own[:first] if not isinstance(module, nn.Linear))
