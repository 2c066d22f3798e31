"""The only place that knows which dimension of which tensor carries a layer's channels.

A layer has named *axes*. Mixing layers (Linear, Conv, ConvTranspose) have `"in"` and `"out"`;
channelwise layers (BatchNorm, InstanceNorm, GroupNorm, PReLU) have `"through"`; a bare `Parameter`
or buffer has one axis per dimension, `"dim0"`, `"dim1"`, ...; any other module one for each number
of its code that follows a cut (`core/numbers`). A grouped convolution keeps its `"in"`
and `"out"` axes; which of its channels must go together is decided by `core/labels`.

Shapes of the tensors:

    Linear.weight                                       (out, in)
    Conv.weight                                         (out, in / groups, *kernel)
    ConvTranspose.weight                                (in, out / groups, *kernel)
    BatchNorm.weight, .bias, .running_mean, .running_var    (C,)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm

from edgecompress.core import numbers
from edgecompress.errors import EdgecompressError

BatchNorm = _BatchNorm


@dataclass(frozen=True)
class Resized:
    """A layer after a change of size: its new tensors and its new integer attributes, by name."""

    tensors: dict[str, Tensor]
    attributes: dict[str, int]


def is_mixing(module: nn.Module) -> bool:
    """True for layers whose every output channel reads many input channels: Linear, Conv and
    ConvTranspose.
    """
    return isinstance(module, (nn.Linear, _ConvNd))


def is_conv(module: nn.Module) -> bool:
    """True for convolutions, transposed ones included."""
    return isinstance(module, _ConvNd)


def is_channelwise(module: nn.Module) -> bool:
    """True for layers with parameters or statistics per channel that mix no channels."""
    return isinstance(module, (_BatchNorm, _InstanceNorm, nn.PReLU))


def loses_whole_groups(module: nn.Module) -> bool:
    """True for a convolution that is cut by dropping complete groups (a depthwise one always is).

    A grouped convolution can be cut in two ways: complete groups go, or every group loses the same
    positions. The way that leaves more choices is taken: many narrow groups are dropped one by one,
    few wide ones are narrowed together.
    """
    if not isinstance(module, _ConvNd) or module.groups == 1:
        return False
    return module.groups >= min(module.in_channels, module.out_channels) // module.groups


def axes(module: nn.Module) -> tuple[str, ...]:
    """Names of the axes of `module`, `()` for a layer without channels of its own."""
    if is_mixing(module):
        return ("in", "out")
    if is_channelwise(module) or isinstance(module, nn.GroupNorm):
        return ("through",)
    return ()


def axis_size(module: nn.Module, axis: str) -> int:
    """Number of positions of one axis, in channels (for a Linear: features)."""
    if numbers.is_number(axis):
        return numbers.read(module, numbers.attribute_of(axis))
    if isinstance(module, nn.Linear):
        return module.in_features if axis == "in" else module.out_features
    if isinstance(module, _ConvNd):
        return module.in_channels if axis == "in" else module.out_channels
    if isinstance(module, (_BatchNorm, _InstanceNorm)):
        return int(module.num_features)
    if isinstance(module, nn.GroupNorm):
        return module.num_channels
    if isinstance(module, nn.PReLU):
        return module.num_parameters
    raise EdgecompressError(f"{type(module).__name__} has no axis '{axis}'")


def axis_dim(axis: str) -> int:
    """The dimension of a bare tensor that `"dim0"`, `"dim1"`, ... names."""
    return int(axis.removeprefix("dim"))


def weight_axes(layer: nn.Module) -> tuple[str, str]:
    """The axes in dimension 0 and dimension 1 of a mixing layer's weight."""
    return ("in", "out") if isinstance(layer, _ConvTransposeNd) else ("out", "in")


def channel_tensors(layer: nn.Module) -> dict[str, Tensor]:
    """The parameters and statistics (C,) of a channelwise layer, by name."""
    size = axis_size(layer, "through")
    named = [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]
    return {name: tensor for name, tensor in named if tuple(tensor.shape) == (size,)}


def mixing_attributes(layer: nn.Module, inputs: int, outputs: int) -> dict[str, int]:
    """The attributes of a mixing layer with that many input and output channels."""
    if isinstance(layer, nn.Linear):
        return {"in_features": inputs, "out_features": outputs}
    return {"in_channels": inputs, "out_channels": outputs}


def channelwise_attributes(layer: nn.Module, size: int, groups: int = 1) -> dict[str, int]:
    """The attributes of a channelwise layer with `size` channels; `groups` are those of a
    GroupNorm.
    """
    if isinstance(layer, nn.GroupNorm):
        return {"num_channels": size, "num_groups": groups}
    return {"num_parameters" if isinstance(layer, nn.PReLU) else "num_features": size}


# -- Cutting


def cut(layer: nn.Module | Tensor, kept: Mapping[str, Tensor]) -> Resized:
    """The tensors and attributes of `layer` when only the positions `kept` stay.

    `kept` maps an axis to a bool tensor (size of the axis,); an axis that is absent stays complete.
    For a bare tensor the result is under the name `""`. Raises `EdgecompressError` when the groups
    of a convolution would end with unequal widths.
    """
    if isinstance(layer, Tensor):
        for axis, mask in kept.items():
            layer = _pick(layer, axis_dim(axis), mask)
        return Resized({"": layer.detach().clone()}, {})
    if all(map(numbers.is_number, kept)):
        left = {axis: int(mask.sum()) for axis, mask in kept.items()}
        return Resized({}, {numbers.attribute_of(axis): count for axis, count in left.items()})
    masks = {
        axis: kept.get(axis, torch.ones(axis_size(layer, axis), dtype=torch.bool))
        for axis in axes(layer)
    }
    if isinstance(layer, nn.Linear):
        return _cut_linear(layer, masks)
    if isinstance(layer, _ConvNd):
        return _cut_conv(layer, masks)
    return _cut_channelwise(layer, masks["through"])


def _pick(tensor: Tensor, dim: int, kept: Tensor) -> Tensor:
    """A copy of `tensor` with the positions of `dim` where `kept` (size of dim,) is true."""
    return tensor.detach().index_select(dim, kept.nonzero()[:, 0].to(tensor.device)).clone()


def _cut_linear(layer: nn.Linear, kept: Mapping[str, Tensor]) -> Resized:
    tensors = {"weight": _pick(_pick(layer.weight, 0, kept["out"]), 1, kept["in"])}
    if layer.bias is not None:
        tensors["bias"] = _pick(layer.bias, 0, kept["out"])
    return Resized(tensors, mixing_attributes(layer, int(kept["in"].sum()), int(kept["out"].sum())))


def _cut_conv(layer: _ConvNd, kept: Mapping[str, Tensor]) -> Resized:
    """Cut a convolution group by group; groups that lost every channel are dropped."""
    row_axis, column_axis = weight_axes(layer)
    groups = zip(
        layer.weight.detach().chunk(layer.groups, 0),
        kept[row_axis].chunk(layer.groups),
        kept[column_axis].chunk(layer.groups),
        strict=True,
    )
    parts = [
        _pick(_pick(weight, 0, rows), 1, columns)
        for weight, rows, columns in groups
        if rows.any() or columns.any()
    ]
    if len({tuple(part.shape[:2]) for part in parts}) != 1 or 0 in parts[0].shape:
        raise EdgecompressError(
            f"a cut leaves the {layer.groups} groups of a convolution with unequal widths: drop "
            "complete groups, or the same positions of each"
        )
    tensors = {"weight": torch.cat(parts, 0)}
    if layer.bias is not None:
        tensors["bias"] = _pick(layer.bias, 0, kept["out"])
    sizes = mixing_attributes(layer, int(kept["in"].sum()), int(kept["out"].sum()))
    return Resized(tensors, {**sizes, "groups": len(parts)})


def _cut_channelwise(layer: nn.Module, kept: Tensor) -> Resized:
    tensors = {name: _pick(tensor, 0, kept) for name, tensor in channel_tensors(layer).items()}
    left = int(kept.sum())
    # the channels of each normalised group go together, so what is left is a number of groups
    groups = left * int(getattr(layer, "num_groups", 1)) // len(kept)
    return Resized(tensors, channelwise_attributes(layer, left, groups))


# -- Other views of a layer's tensors


def reordered(layer: nn.Module | Tensor, orders: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of `layer` with the positions of its axes permuted: position i takes the values
    from position `orders[axis][i]`; `orders[axis]` is (size of the axis,).

    Of grouped convolutions only depthwise ones can be permuted, with equal orders for inputs and
    outputs.
    """
    if isinstance(layer, Tensor):
        permuted = layer.detach()
        for axis, order in orders.items():
            permuted = _permuted(permuted, axis_dim(axis), order)
        return {"": permuted.clone()}
    if all(map(numbers.is_number, orders)):
        return {}  # a number stays the same
    named = [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]
    return {name: _reordered(layer, name, t.detach(), orders).clone() for name, t in named}


def _reordered(layer: nn.Module, name: str, tensor: Tensor, orders: Mapping[str, Tensor]) -> Tensor:
    """One tensor of a layer, permuted along every axis that it carries."""
    if is_mixing(layer) and name == "weight":
        rows, columns = weight_axes(layer)
        tensor = _permuted(tensor, 0, orders.get(rows))
        depthwise = int(getattr(layer, "groups", 1)) > 1
        return tensor if depthwise else _permuted(tensor, 1, orders.get(columns))
    order = orders.get("out" if is_mixing(layer) else "through")
    if order is None or tensor.dim() != 1 or len(tensor) != len(order):
        return tensor
    return _permuted(tensor, 0, order)


def _permuted(tensor: Tensor, dim: int, order: Tensor | None) -> Tensor:
    return tensor if order is None else tensor.index_select(dim, order.to(tensor.device))


def axis_slices(layer: nn.Module, axis: str) -> list[tuple[str, Tensor]]:
    """`(name, tensor)` of every parameter that carries `axis`, moved so that the axis is dimension
    0: (size of the axis, ...).

    For an ungrouped layer these are views. For the input axis of a grouped convolution the groups
    follow one another, so that row i holds the weights that read input channel i.
    """
    if not is_mixing(layer):
        size = axis_size(layer, axis)
        named = layer.named_parameters(recurse=False)
        return [(name, tensor) for name, tensor in named if tuple(tensor.shape) == (size,)]
    weight = _weight(layer)
    bias = getattr(layer, "bias", None) if axis == "out" else None
    slices = [("weight", weight if axis == weight_axes(layer)[0] else _by_column(layer, weight))]
    return slices if bias is None else [*slices, ("bias", bias)]


def _weight(layer: nn.Module) -> Tensor:
    """The weight of a mixing layer.

    It is a plain tensor, which `get_parameter` refuses, under `functional_call` and where
    `torch.nn.utils.prune` masks it.
    """
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return weight


def weight_count(layer: nn.Module) -> int:
    """Weights of a mixing layer, without its bias."""
    return _weight(layer).numel()


def _by_column(layer: nn.Module, weight: Tensor) -> Tensor:
    """The weight with the axis of dimension 1 in front, group after group."""
    if isinstance(layer, nn.Linear):
        return weight.transpose(0, 1)
    groups = weight.chunk(int(getattr(layer, "groups", 1)), 0)
    return torch.cat([group.transpose(0, 1) for group in groups], 0)


def input_sums(layer: nn.Module, values: Tensor) -> Tensor:
    """Sums (in,) of `values`, shaped like the weight of a mixing `layer`, over all weights that
    read each input position.
    """
    if isinstance(layer, nn.Linear):
        return values.sum(0)
    if isinstance(layer, _ConvTransposeNd):
        return values.flatten(1).sum(1)
    return _sums_by_column(layer, values)


def output_sums(layer: nn.Module, values: Tensor) -> Tensor:
    """Sums (out,) of `values`, shaped like the weight of a mixing `layer`, over all weights that
    write each output position.
    """
    if isinstance(layer, _ConvTransposeNd):
        return _sums_by_column(layer, values)
    return values.flatten(1).sum(1)


def _sums_by_column(layer: nn.Module, values: Tensor) -> Tensor:
    """Sums of `values`, shaped like a convolution's weight, for each position of the axis in
    dimension 1, group after group.
    """
    groups = int(getattr(layer, "groups", 1))
    per_group = values.reshape(groups, -1, *values.shape[1:]).sum(1)
    return per_group.flatten(2).sum(2).reshape(-1)


def scale_inputs(layer: nn.Module, factor: Tensor) -> Tensor:
    """The weight of a mixing `layer` that reads input position i multiplied by `factor[i]`, with
    `factor` (in,); its shape stays. Raises `EdgecompressError` for a layer that does not mix.
    """
    weight = _weight(layer)
    factor = factor.to(weight)
    if isinstance(layer, nn.Linear):
        return weight * factor
    if not isinstance(layer, _ConvNd):
        raise EdgecompressError(
            f"{type(layer).__name__} does not mix channels: give a Linear or a convolution"
        )
    if isinstance(layer, _ConvTransposeNd):
        return weight * _along_rows(factor, weight)
    return _scaled_columns(layer, weight, factor)


def scale_outputs(layer: nn.Module, factor: Tensor) -> Tensor:
    """The weight of a mixing `layer` whose output channel i is multiplied by `factor[i]`, with
    `factor` (out,); its shape stays.
    """
    weight = layer.get_parameter("weight")
    factor = factor.to(weight)
    if isinstance(layer, _ConvTransposeNd):
        return _scaled_columns(layer, weight, factor)
    return weight * _along_rows(factor, weight)


def _along_rows(factor: Tensor, weight: Tensor) -> Tensor:
    """`factor` (rows,) in a shape that multiplies dimension 0 of `weight`."""
    return factor.reshape(-1, *[1] * (weight.dim() - 1))


def _scaled_columns(layer: nn.Module, weight: Tensor, factor: Tensor) -> Tensor:
    """`weight` of a convolution with dimension 1 multiplied by `factor`, group after group."""
    groups = int(getattr(layer, "groups", 1))
    per_group = factor.reshape(groups, 1, -1, *[1] * (weight.dim() - 2))
    blocks = weight.reshape(groups, -1, *weight.shape[1:])
    return (blocks * per_group).reshape_as(weight)


def unit_weights(layer: nn.Module) -> float:
    """Weights for one (input, output) pair of a mixing layer; for one output where it loses whole
    groups (`loses_whole_groups`).

    A convolution whose groups are all narrowed has in * out / groups kernels.
    """
    kernel = 1
    for extent in getattr(layer, "kernel_size", ()):
        kernel *= extent
    groups = int(getattr(layer, "groups", 1))
    if loses_whole_groups(layer):
        return kernel * axis_size(layer, "in") / groups
    return kernel / groups
