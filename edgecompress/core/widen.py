"""The wide network that holds several networks of one kind, built from a placement of their
positions (`core/placement`).

In dense layers the weights from one network's channels to another's exist and are zero. Grouped and
channelwise layers lie side by side. Outputs that all networks write become their mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgecompress.core import layers, numbers
from edgecompress.core.layers import Resized
from edgecompress.core.placement import Placement
from edgecompress.core.shrink import find, rebuilt
from edgecompress.core.symbolic import meta_copy
from edgecompress.errors import EdgecompressError, UsageError


@dataclass(frozen=True)
class Placed:
    """Where the layer of one network goes in the wide layer.

    `positions` maps each axis to the places of its positions there, (size of the axis,). `share`
    (out,) multiplies its weights row by row: 1, or 1 / N where N networks write the same output.
    """

    positions: Mapping[str, Tensor]
    share: Tensor


def wide_network(parts: Sequence[nn.Module], placement: Placement, *, on_meta: bool) -> nn.Module:
    """The network whose layers hold those of all `parts` as placed; with `on_meta` its shapes only.

    Raises `UsageError` naming the layer that cannot hold them.
    """
    models = [meta_copy(part) for part in parts] if on_meta else list(parts)
    changed: dict[str, Resized] = {}
    for name in dict.fromkeys(layer for layer, _ in placement):
        axes = {axis: places for (layer, axis), places in placement.items() if layer == name}
        try:
            changed[name] = _wide(models, name, axes)
        except EdgecompressError as error:
            raise UsageError(
                f"{type(parts[0]).__name__} cannot be stacked at '{name}': {error}"
            ) from error
    return rebuilt(models[0], changed)


def _wide(models: Sequence[nn.Module], name: str, axes: Mapping[str, Sequence[Tensor]]) -> Resized:
    """Layer or bare tensor `name` of all models; `axes` has each model's places, (size,) each."""
    sizes = {axis: int(torch.cat(list(places)).max()) + 1 for axis, places in axes.items()}
    positions = [
        {axis: places[number] for axis, places in axes.items()} for number in range(len(models))
    ]
    members = [find(model, name) for model in models]
    modules = [layer for layer in members if isinstance(layer, nn.Module)]
    if modules:
        return wide_layer(modules, _with_shares(positions), sizes)
    tensors = [layer for layer in members if isinstance(layer, Tensor)]
    return _wide_tensor(tensors, positions, sizes)


def _with_shares(positions: Sequence[Mapping[str, Tensor]]) -> list[Placed]:
    """Of an output that N networks write each contributes 1 / N."""
    if "out" not in positions[0]:
        return [Placed(places, torch.ones(1)) for places in positions]
    writers = torch.cat([places["out"] for places in positions]).bincount().double()
    return [Placed(places, 1 / writers[places["out"]]) for places in positions]


def wide_layer(
    parts: Sequence[nn.Module], places: Sequence[Placed], sizes: Mapping[str, int]
) -> Resized:
    """One layer that holds all `parts`, each at its place; `sizes` are those of its axes. Weights
    that no part fills are zero.

    In a dense layer parts that share an output position are added, and input positions may be
    shared too. Raises `EdgecompressError` when the parts of a grouped or channelwise layer do not
    lie side by side.
    """
    if all(map(numbers.is_number, sizes)):
        return Resized({}, {numbers.attribute_of(axis): size for axis, size in sizes.items()})
    if not layers.is_mixing(parts[0]):
        return _wide_channelwise(parts, places, sizes["through"])
    if int(getattr(parts[0], "groups", 1)) > 1:
        return _wide_grouped(parts, places, sizes)
    return _wide_dense(parts, places, sizes)


def _wide_dense(
    parts: Sequence[nn.Module], places: Sequence[Placed], sizes: Mapping[str, int]
) -> Resized:
    rows, columns = layers.weight_axes(parts[0])
    first = parts[0].get_parameter("weight")
    weight = first.new_zeros(sizes[rows], sizes[columns], *first.shape[2:])
    for part, place in zip(parts, places, strict=True):
        row = place.positions[rows].to(weight.device)
        column = place.positions[columns].to(weight.device)
        scaled = layers.scale_outputs(part, place.share).detach()
        weight[row[:, None], column[None, :]] += scaled

    tensors = {"weight": weight}
    if getattr(parts[0], "bias", None) is not None:
        tensors["bias"] = _wide_bias(parts, places, first.new_zeros(sizes["out"]))
    return Resized(tensors, layers.mixing_attributes(parts[0], sizes["in"], sizes["out"]))


def _wide_bias(parts: Sequence[nn.Module], places: Sequence[Placed], zeros: Tensor) -> Tensor:
    """The biases of all parts, added at their places to `zeros` (out,)."""
    bias = zeros.clone()
    for part, place in zip(parts, places, strict=True):
        own = part.get_parameter("bias").detach()
        bias[place.positions["out"].to(bias.device)] += own * place.share.to(bias)
    return bias


def _wide_grouped(
    parts: Sequence[nn.Module], places: Sequence[Placed], sizes: Mapping[str, int]
) -> Resized:
    """Grouped convolutions lie side by side, group after group: no weight connects two parts."""
    for axis in ("in", "out"):
        laid = torch.cat([place.positions[axis] for place in places])
        if not torch.equal(laid, torch.arange(sizes[axis])):
            raise EdgecompressError(
                "the channels of several grouped convolutions would not lie side by side"
            )
    names = ["weight"] if getattr(parts[0], "bias", None) is None else ["weight", "bias"]
    tensors = {
        name: torch.cat([part.get_parameter(name).detach() for part in parts]) for name in names
    }
    groups = sum(int(getattr(part, "groups", 1)) for part in parts)
    attributes = layers.mixing_attributes(parts[0], sizes["in"], sizes["out"])
    return Resized(tensors, {**attributes, "groups": groups})


def _wide_channelwise(parts: Sequence[nn.Module], places: Sequence[Placed], size: int) -> Resized:
    taken = torch.cat([place.positions["through"] for place in places])
    if len(taken) != size or len(taken.unique()) != len(taken):
        raise EdgecompressError(
            f"the {type(parts[0]).__name__}s of several networks would share channels"
        )
    tensors = {}
    for name, tensor in layers.channel_tensors(parts[0]).items():
        wide = tensor.new_zeros(size)
        for part, place in zip(parts, places, strict=True):
            wide[place.positions["through"].to(wide.device)] = getattr(part, name).detach()
        tensors[name] = wide
    groups = int(getattr(parts[0], "num_groups", 1)) * len(parts)
    return Resized(tensors, layers.channelwise_attributes(parts[0], size, groups))


def _wide_tensor(
    tensors: Sequence[Tensor],
    positions: Sequence[Mapping[str, Tensor]],
    sizes: Mapping[str, int],
) -> Resized:
    """A bare parameter or buffer: the values of each network at their places. Where several share a
    place, those of the last remain.
    """
    shape = [sizes.get(f"dim{dim}", size) for dim, size in enumerate(tensors[0].shape)]
    wide = tensors[0].new_zeros(shape)
    for tensor, places in zip(tensors, positions, strict=True):
        index = [
            places.get(f"dim{dim}", torch.arange(size)).to(wide.device)
            for dim, size in enumerate(tensor.shape)
        ]
        wide[torch.meshgrid(*index, indexing="ij")] = tensor.detach()
    return Resized({"": wide}, {})
