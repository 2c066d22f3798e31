"""How a network computes for a while: mode, dropout, precision, memory layout, hooks. Afterwards
it is as before.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

Inputs = tuple[Any, ...]
"""Positional arguments of a layer, as its hooks receive them."""

DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """`model` in eval mode inside the context."""
    was_training = model.training
    model.eval()
    try:
        yield model
    finally:
        model.train(was_training)


@contextlib.contextmanager
def hooked(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Remove the hooks of `handles` when the context ends."""
    registered = list(handles)
    try:
        yield
    finally:
        for handle in registered:
            handle.remove()


@contextlib.contextmanager
def dropout_of(model: nn.Module, probability: float | None) -> Iterator[None]:
    """Set every dropout layer of `model` to `probability` inside the context; None changes
    nothing.
    """
    if probability is None:
        yield
        return
    own = [(module, module.p) for module in model.modules() if isinstance(module, DROPOUT)]
    for module, _ in own:
        module.p = probability
    try:
        yield
    finally:
        for module, p in own:
            module.p = p


def autocast_for(
    precision: str, device: torch.device
) -> Callable[[], contextlib.AbstractContextManager[object]]:
    """The context of a forward pass in `precision`: `fp32`, `bf16`, or `auto` (bf16 on GPUs that
    support it).
    """
    supported = device.type == "cuda" and torch.cuda.is_bf16_supported()
    if precision == "bf16" or (precision == "auto" and supported):
        return lambda: torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext


_CONTIGUOUS: WeakSet[nn.Module] = WeakSet()
"""Networks that have failed in channels_last order."""
VIEW_FAILED = "view size is not compatible"
"""What PyTorch says of a `view` that the order in memory forbids."""


def outputs_of(model: nn.Module, images: Tensor) -> Tensor:
    """The outputs (B, ...) of `model` for `images` (B, C, H, W), in the order in memory that is
    fast here.

    A network that flattens by `view`, as many tutorials do, cannot run in channels_last order: from
    its first failure on it runs in contiguous order, weights and images. Its own code decides what
    `view` means: it may write through it.
    """
    if model not in _CONTIGUOUS:
        try:
            outputs: Tensor = model(compact(images))
            return outputs
        except RuntimeError as error:
            if VIEW_FAILED not in str(error):
                raise
        _CONTIGUOUS.add(model)
        set_layout_(model, torch.contiguous_format)
    settled: Tensor = model(images.contiguous())
    return settled


def compact(images: Tensor) -> Tensor:
    """`images` (B, C, H, W) in channels_last order on a CPU, where convolutions run faster on it;
    unchanged elsewhere.
    """
    if images.device.type != "cpu" or images.dim() != 4:
        return images
    return images.contiguous(memory_format=torch.channels_last)


def set_layout_(model: nn.Module, layout: torch.memory_format) -> None:
    """Store the weights (O, I, kH, kW) of 2-D convolutions in `layout`, in place; their values and
    shapes do not change.
    """
    for parameter in model.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=layout)
