"""Compare convolutions in float32 with float64, in a process of its own that may crash.

    python tests/core/convolution_cases.py SEED SHARE START [--plain] [--bf16]

Runs the SHARE of all cases that SEED draws, from number START on. A case is written to
stderr before it runs, so the last line there is the case that crashed or hung. What differs by more
than rounding is printed to stdout; the last line is `done N` (cases compared). With --plain without
`safe_convolutions`, with --bf16 under autocast to bfloat16.
"""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from edgecompress.core.convolutions import safe_convolutions

TOLERANCE = 1e-4
TOLERANCE_BF16 = 5e-2
"""bfloat16 has 8 bits; what the fault returns is off by the size of the values."""


class Case(NamedTuple):
    """One convolution: what pruning can leave of a network's layers."""

    transposed: bool
    kernel: int
    stride: int
    dilation: int
    padding: int
    depthwise: bool
    inputs: int
    outputs: int


def all_cases() -> Iterator[Case]:
    for transposed in (False, True):
        for kernel in (1, 3, 5):
            for stride in (1, 2):
                for dilation in (1, 2) if kernel > 1 else (1,):
                    for padding in sorted({0, 1, kernel // 2 * dilation}):
                        for inputs in range(1, 20):
                            shape = (transposed, kernel, stride, dilation, padding)
                            yield Case(*shape, True, inputs, inputs)
                            for outputs in range(1, 20):
                                yield Case(*shape, False, inputs, outputs)


def computed(
    case: Case, x: Tensor, weight: Tensor, order: torch.memory_format, safe: bool, half: bool
) -> tuple[Tensor, ...]:
    """Outputs, and the gradients of input and weight for a loss that weighs every output
    differently.
    """
    x, weight = (t.detach().clone(memory_format=order).requires_grad_() for t in (x, weight))
    groups = case.inputs if case.depthwise else 1
    with (
        safe_convolutions() if safe else contextlib.nullcontext(),
        torch.autocast("cpu", torch.bfloat16, enabled=half),
    ):
        if case.transposed:
            y = F.conv_transpose2d(
                x, weight, None, case.stride, case.padding, groups=groups, dilation=case.dilation
            )
        else:
            y = F.conv2d(x, weight, None, case.stride, case.padding, case.dilation, groups)
    factors = torch.arange(y.numel(), dtype=torch.float64).cos().to(x).reshape(y.shape)
    (y * factors).sum().backward()
    return y.detach(), x.grad, weight.grad


def largest_error(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    pairs = zip(actual, expected, strict=True)
    return max(float((a.double() - b).abs().max() / b.abs().max().clamp_min(1.0)) for a, b in pairs)


def main(seed: int, share: float, start: int, safe: bool, half: bool) -> None:
    draw = random.Random(seed)
    chosen = [case for case in all_cases() if draw.random() < share]
    for number, case in enumerate(chosen):
        # even sizes, several images, and images that threads share unevenly: where the known fault
        # shows; each processor has kernels of its own for one thread and for several
        size, batch = draw.choice((9, 10, 16)), draw.choice((2, 3, 6, 17))
        threads = draw.choice((1, 2))
        if number < start:
            continue
        torch.set_num_threads(threads)
        shape = f"{batch} images of {size}, {threads} threads"
        print(number, case, shape, file=sys.stderr, flush=True)
        generator = torch.Generator().manual_seed(number)
        groups = case.inputs if case.depthwise else 1
        first, second = (
            (case.inputs, case.outputs) if case.transposed else (case.outputs, case.inputs)
        )
        x = torch.randn(batch, case.inputs, size, size, generator=generator)
        weight = torch.randn(first, second // groups, case.kernel, case.kernel, generator=generator)
        exact = computed(
            case, x.double(), weight.double(), torch.contiguous_format, safe=False, half=False
        )
        for order in (torch.contiguous_format, torch.channels_last):
            error = largest_error(computed(case, x, weight, order, safe, half), exact)
            if not error < (TOLERANCE_BF16 if half else TOLERANCE):
                print(f"{case} {order}: off by {error:.2g}", flush=True)
    print(f"done {len(chosen)}", flush=True)


if __name__ == "__main__":
    flags = sys.argv[4:]
    main(
        int(sys.argv[1]),
        float(sys.argv[2]),
        int(sys.argv[3]),
        safe="--plain" not in flags,
        half="--bf16" in flags,
    )
