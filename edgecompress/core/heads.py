"""The outputs of stacked networks: averaged behind the wide network, or side by side with different
numbers of outputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edgecompress.core import layers
from edgecompress.core.graph import ChannelGraph, ChannelGroup, trace
from edgecompress.core.labels import OUTPUT
from edgecompress.core.layers import Resized
from edgecompress.core.shrink import find, kept_positions, rebuilt
from edgecompress.core.widen import Placed, wide_layer
from edgecompress.errors import UsageError


class Averaged(nn.Module):
    """The mean over networks of outputs that lie side by side: (N, count * K, ...) to (N, K,
    ...).
    """

    def __init__(self, wide: nn.Module, count: int) -> None:
        super().__init__()
        self.wide = wide
        self.count = count

    def forward(self, x: Tensor) -> Tensor:
        """Mean outputs (N, K, ...) of the networks for `x` (N, ...)."""
        y: Tensor = self.wide(x)
        split: Tensor = y.unflatten(1, (self.count, -1))
        return split.mean(1)


def output_group(graph: ChannelGraph) -> ChannelGroup | None:
    """The frozen group of the network's outputs; None when no layer writes them."""
    return next((group for group in graph.frozen if group.frozen == OUTPUT), None)


def with_one_head(model: nn.Module, example: Tensor) -> nn.Module:
    """`model`, perhaps shrunk; where it is `Averaged`, a network of its parts' own class whose last
    layers are the mean of theirs. `example` (N, ...) is an input.

    The outputs then change, since what follows the last layers is not affine.
    """
    if not isinstance(model, Averaged):
        return model
    wide = model.wide
    head = output_group(trace(wide, example))
    if head is None:
        raise UsageError(f"no layer of {type(wide).__name__} writes its outputs: keep them apart")
    network_of = torch.arange(head.size) // (head.size // model.count)
    heads = [_with_outputs(wide, head, network_of == number) for number in range(model.count)]

    states = [single.state_dict() for single in heads]
    for name, value in states[0].items():
        if value.is_floating_point():
            value.copy_(torch.stack([state[name].double() for state in states]).mean(0))
    return heads[0]


def _with_outputs(model: nn.Module, head: ChannelGroup, keep: Tensor) -> nn.Module:
    """`model` with only the outputs `keep` (outputs,) of its frozen group `head`."""
    kept = kept_positions(model, {head: keep})
    return rebuilt(
        model, {name: layers.cut(find(model, name), axes) for name, axes in kept.items()}
    )


def with_equal_heads(
    models: Sequence[nn.Module], example: Tensor
) -> tuple[list[nn.Module], list[int]]:
    """The networks with their outputs padded with zeros to the largest number among them, and the
    number that each had. `example` (N, ...) is an input.

    Raises `UsageError` when a network's outputs are not those of one layer each.
    """
    heads = [output_group(trace(model, example)) for model in models]
    counts = [0 if head is None else head.size for head in heads]
    if len(set(counts)) == 1 or 0 in counts:
        return list(models), counts
    most = max(counts)
    padded = [
        model if head is None or head.size == most else _padded(model, head, most)
        for model, head in zip(models, heads, strict=True)
    ]
    return padded, counts


def _padded(model: nn.Module, head: ChannelGroup, size: int) -> nn.Module:
    """`model` with `size` outputs, of which those that are new are zero."""
    changed: dict[str, Resized] = {}
    for member in head.members:
        layer = find(model, member.layer)
        if isinstance(layer, Tensor) or member.index.shape != (head.size, 1):
            raise UsageError(
                f"the outputs of {type(model).__name__} are not those of one layer each: "
                "its head cannot be kept apart"
            )
        sizes = {axis: layers.axis_size(layer, axis) for axis in layers.axes(layer)}
        unmoved = Placed({axis: torch.arange(n) for axis, n in sizes.items()}, torch.ones(1))
        changed[member.layer] = wide_layer([layer], [unmoved], {**sizes, member.axis: size})
    return rebuilt(model, changed)


def without_padding(wide: nn.Module, counts: Sequence[int], example: Tensor) -> nn.Module:
    """`wide` without the outputs that `with_equal_heads` added; `counts` are the numbers that it
    returned. `example` (N, ...) is an input.
    """
    most = max(counts)
    if all(count == most for count in counts):
        return wide
    head = output_group(trace(wide, example))
    if head is None:
        return wide
    keep = torch.cat([torch.arange(most) < count for count in counts])
    return _with_outputs(wide, head, keep)
