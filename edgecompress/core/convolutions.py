"""Convolutions whose gradients are correct on every processor.

oneDNN's backward pass of a 1x1 convolution with a stride and few input channels, in channels_last
order, writes past its workspace on x86 (uxlfoundation/oneDNN#6035): fewer than 8 channels without
AVX-512, fewer than 16 with it (seen with several threads). It hangs, crashes, or returns wrong
gradients. Pruning makes such layers: the shortcut of a residual block that was cut to a few
channels. Every stride-th element of the input followed by a 1x1 convolution of stride 1 is the same
function, without that kernel. Average pooling of single elements picks them in one pass, and its
backward pass is one too; a slice is copied once more in each direction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

CPU = torch.device("cpu")
SAFE_CHANNELS = 16
"""Number of input channels from which on the kernel is correct on every processor."""


def safe_convolutions(device: torch.device = CPU) -> AbstractContextManager[object]:
    """A context in which this thread computes 2-D convolutions so that their gradients are correct
    on every processor. On other devices than a CPU nothing is faulty and nothing changes: a context
    that sees every operation slows down small networks there, whose kernels wait for Python.

    Wrap every forward pass that a backward pass follows. The networks themselves do not change, so
    neither does what is traced or exported from them outside.
    """
    return _Replacing() if device.type == "cpu" else nullcontext()


class _Replacing(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """`func` of its arguments; `F.conv2d` is replaced by an equal function."""
        function = _conv2d if func is F.conv2d else func
        return function(*args, **(kwargs or {}))


def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """`torch.nn.functional.conv2d` of `input` (N, C, H, W) and `weight` (O, C / groups, kH, kW),
    without the faulty kernel.
    """
    rows, columns = _pair(stride)
    faulty = (
        (rows, columns) != (1, 1)
        and weight.shape[1] < SAFE_CHANNELS
        and weight.shape[2:] == (1, 1)
        and groups == 1
    )
    if not faulty or input.dim() != 4 or input.device.type != "cpu" or padding == "same":
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    high, wide = (0, 0) if padding == "valid" else _pair(padding)
    if high or wide:
        input = F.pad(input, (wide, wide, high, high))
    return F.conv2d(F.avg_pool2d(input, 1, (rows, columns)), weight, bias)


def _pair(value: int | str | Sequence[int]) -> tuple[int, int]:
    values = [value, value] if isinstance(value, int) else [int(part) for part in value]
    return (values[0], values[-1])
