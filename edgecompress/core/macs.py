"""Multiply-accumulates (MACs) of a network, counted where they happen: by every matrix product and
convolution that one forward pass executes, however often a layer is called.

The pass runs on the meta device, where recurrent layers and attention (which have fused kernels on
others) decompose into their matrix products; nothing is computed and no weight is read. What an
operation costs is in torch's own table (`torch.utils.flop_counter`), in which one MAC is two
floating-point operations.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from edgecompress.core.concrete import keeps_shape
from edgecompress.core.symbolic import meta_copy


def macs_by_module(model: nn.Module, *examples: Tensor) -> dict[str, int]:
    """MACs of one sample like `examples` (N, ...) by the module whose own code executes them ("" is
    the network itself), in eval mode; of every call of a module.

    Raises what a network raises that does not run on its example.
    """
    try:
        return _on_meta(model, examples)
    except Exception:  # its code asks for values, which the meta device has not
        return _on_values(model, examples)


def _on_meta(model: nn.Module, examples: Sequence[Tensor]) -> dict[str, int]:
    copied = meta_copy(model)
    for module in copied.modules():
        if type(module).__module__.startswith("torch.nn.") and keeps_shape(module):
            module.forward = _same  # nothing to count, and slow on the meta device
    counter = _Counter()
    # on the meta device also what the network makes on its way
    with torch.device("meta"), _attributed(copied, counter), torch.no_grad(), counter:
        copied(*(torch.empty_like(example[:1], device="meta") for example in examples))
    return dict(counter.macs)


def _on_values(model: nn.Module, examples: Sequence[Tensor]) -> dict[str, int]:
    """The same on a copy of the network itself, without the fused kernels of recurrent layers and
    attention, which are in no table.
    """
    copied, counter = copy.deepcopy(model).cpu().eval(), _Counter()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of GPUs that are not here
        plain = (torch.backends.mkldnn.flags(enabled=False), sdpa_kernel(SDPBackend.MATH))
        with plain[0], plain[1], _attributed(copied, counter), counter:
            copied(*(example[:1].cpu() for example in examples))
    return dict(counter.macs)


def _same(x: Tensor) -> Tensor:
    return x


class _Counter(TorchDispatchMode):
    """Adds up the MACs of the operations that run inside it, under the innermost of `running`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.macs: Counter[str] = Counter()
        self.running: list[str] = [""]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        """Runs the operation `func`, and counts it."""
        out: object = func(*args, **(kwargs or {}))
        count = flop_registry.get(func.overloadpacket)
        if count is not None:
            self.macs[self.running[-1]] += count(*args, **(kwargs or {}), out_val=out) // 2
        return out


@contextlib.contextmanager
def _attributed(model: nn.Module, counter: _Counter) -> Iterator[None]:
    """Inside the context, `counter` knows which module of `model` is running."""
    handles = []
    for name, module in model.named_modules():
        handles += [
            module.register_forward_pre_hook(lambda *_, name=name: counter.running.append(name)),
            module.register_forward_hook(lambda *_: _left(counter)),
        ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _left(counter: _Counter) -> None:
    counter.running.pop()
