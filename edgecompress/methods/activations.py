"""Inputs of layers, computed once and held."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from edgecompress.core import layers
from edgecompress.train.modes import Inputs, hooked

CHUNK = 256
"""Samples per forward pass."""
KEPT_BYTES = 10**9
"""Bytes that the held activations may take."""


def samples_within(model: nn.Module, example: Tensor, limit: int = KEPT_BYTES) -> int:
    """The number of samples whose inputs of all mixing layers fit into `limit` bytes, at least 64.
    `example` is (N, ...).
    """
    mixing = [name for name, layer in model.named_modules() if layers.is_mixing(layer)]
    with recorded_inputs(model, mixing) as inputs, torch.no_grad():
        model.eval()(example[:1])
    per_sample = sum(value.numel() * value.element_size() for value in inputs.values())
    return max(64, limit // max(1, per_sample))


@torch.no_grad()
def inputs_of(model: nn.Module, names: Sequence[str], inputs: Tensor) -> dict[str, Tensor]:
    """The inputs (N, ...) of the layers `names` when `model` computes `inputs` (N, ...), in order
    of execution.
    """
    chunks: dict[str, list[Tensor]] = {}
    for chunk in inputs.split(CHUNK):
        with recorded_inputs(model, names) as recorded:
            model.eval()(chunk)
        for name, value in recorded.items():
            chunks.setdefault(name, []).append(value)
    return {name: torch.cat(values) for name, values in chunks.items()}


@contextmanager
def recorded_inputs(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """A dictionary of the inputs (N, ...) of the layers `names`, filled by forward passes inside
    the context in order of execution; of a layer called twice, the last input.
    """
    recorded: dict[str, Tensor] = {}

    def record(name: str) -> Callable[[nn.Module, Inputs], None]:
        def hook(_: nn.Module, inputs: Inputs) -> None:
            recorded.pop(name, None)  # so that the last call decides the order
            recorded[name] = inputs[0].detach()

        return hook

    with hooked(
        model.get_submodule(name).register_forward_pre_hook(record(name)) for name in names
    ):
        yield recorded
