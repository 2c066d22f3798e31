"""Networks with several outputs: a dict, a tuple, an object with fields, or more of them while they
train. One of them counts.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edgecompress.errors import UsageError

MAIN = ("logits", "out", "output", "prediction", "predictions")
"""Names of the output that counts, the first of them that there is."""

_SINGLE: dict[type[nn.Module], type[nn.Module]] = {}
"""For each class of networks with several outputs the one that returns the output that counts."""


def main_output(value: Any) -> Tensor:
    """The output (N, ...) that counts: of a dict or an object with fields the one called as in
    `MAIN`, else the only tensor; of a tuple or a list the first.

    Raises `UsageError` where that is not clear.
    """
    if isinstance(value, Tensor):
        return value
    if isinstance(value, (tuple, list)) and value and isinstance(value[0], Tensor):
        return value[0]
    fields = value if isinstance(value, Mapping) else getattr(value, "__dict__", {})
    tensors = {key: part for key, part in fields.items() if isinstance(part, Tensor)}
    named = next((tensors[name] for name in MAIN if name in tensors), None)
    if named is not None:
        return named
    if len(tensors) == 1:
        return next(iter(tensors.values()))
    given = f"with {', '.join(map(str, tensors))}" if tensors else "without a tensor"
    raise UsageError(
        f"the network returns a {type(value).__name__} {given}: return a tensor, or call the "
        f"output that counts {' or '.join(MAIN[:2])}"
    )


def single_output_(model: nn.Module, image: Tensor) -> tuple[Tensor, str | None]:
    """Let `model`, in place, return the output that counts alone, where it has several for `image`
    (1, C, H, W) in evaluation or while it trains. Returns that output (1, ...) of the evaluation,
    and what was done.

    The class of the network becomes a subclass of the same name, so that its tensors keep their
    names. Raises what the network raises on the image, and `UsageError` as `main_output` does.
    """
    output = _run(model.eval(), image)
    several = not isinstance(output, Tensor) or not isinstance(_in_training(model, image), Tensor)
    if not several:
        return output, None
    model.__class__ = _single(type(model))
    kind = type(output).__name__ if not isinstance(output, Tensor) else "several while it trains"
    return main_output(output), f"of the network's outputs ({kind}) the main one is used alone"


@torch.no_grad()
def _run(model: nn.Module, image: Tensor) -> Any:
    # in evaluation a network may still draw numbers, which must not change those of a training
    with torch.random.fork_rng(devices=[]):
        return model(image)


def _in_training(model: nn.Module, image: Tensor) -> Any:
    """What it returns while it trains, for two images; a tensor where that cannot be tried."""
    tried = copy.deepcopy(model).train()
    try:
        return _run(tried, image.expand(2, *image.shape[1:]))
    except Exception:  # the training itself says what is wrong
        return image


def _single(kind: type[nn.Module]) -> type[nn.Module]:
    if kind not in _SINGLE:

        @functools.wraps(kind.forward)  # exporters read the names of its arguments
        def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
            return main_output(kind.forward(self, *args, **kwargs))

        _SINGLE[kind] = type(
            kind.__name__,
            (kind,),
            {"forward": forward, "__module__": kind.__module__, "__qualname__": kind.__qualname__},
        )
    return _SINGLE[kind]
