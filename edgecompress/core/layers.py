"""The only place that knows which dimension of which tensor carries a layer's channels.

A layer has named *axes*. Mixing layers (Linear, Conv, ConvTranspose) have `"in"` and `"out"`;
channelwise layers (BatchNorm, InstanceNorm, GroupNorm, PReLU) have `"through"`; a bare `Parameter`
or buffer has one axis a dimension, `"dim0"`, `"dim1"`, ... A grouped convolution keeps its `"in"`
and `"out"` axes; which of its channels live and die together is the graph's business.

Shapes: Linear.weight (out, in); Conv.weight (out, in / groups, *kernel); ConvTranspose.weight (in,
out / groups, *kernel); BatchNorm.weight, .bias, .running_mean, .running_var (C,).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm

from edgecompress.errors import EdgecompressError

BatchNorm = _BatchNorm


@dataclass(frozen=True)
class Cut:
    """What becomes of a layer: new tensors by name and new integer attributes by name."""

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
    """True for layers with parameters or statistics for each channel, which mix no channels."""
    return isinstance(module, (_BatchNorm, _InstanceNorm, nn.PReLU))


def loses_whole_groups(module: nn.Module) -> bool:
    """True for a convolution that is cut by dropping whole groups (a depthwise one always is).

    A grouped convolution can be cut in two ways: whole groups go, or every group loses the same
    positions. The way that leaves more choices is taken: many narrow groups are dropped whole, few
    wide ones are narrowed together.
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


def _pick(tensor: Tensor, dim: int, kept: Tensor) -> Tensor:
    """A copy of `tensor` with the positions of `dim` where `kept` (size of dim,) is true."""
    return tensor.detach().index_select(dim, kept.nonzero()[:, 0].to(tensor.device)).clone()


def _cut_linear(layer: nn.Linear, kept: Mapping[str, Tensor]) -> Cut:
    tensors = {"weight": _pick(_pick(layer.weight, 0, kept["out"]), 1, kept["in"])}
    if layer.bias is not None:
        tensors["bias"] = _pick(layer.bias, 0, kept["out"])
    return Cut(
        tensors, {"in_features": int(kept["in"].sum()), "out_features": int(kept["out"].sum())}
    )


def _cut_conv(layer: _ConvNd, kept: Mapping[str, Tensor]) -> Cut:
    """Cut a convolution, group by group; groups that lost every channel are dropped.

    Raises `EdgecompressError` when what is left of the groups differs in width, since no
    convolution computes that.
    """
    first, second = ("in", "out") if isinstance(layer, _ConvTransposeNd) else ("out", "in")
    blocks, rows, columns = layer.weight.detach().chunk(layer.groups, 0), kept[first], kept[second]
    row_parts, column_parts = rows.chunk(layer.groups), columns.chunk(layer.groups)
    parts = [
        _pick(_pick(block, 0, r), 1, c)
        for block, r, c in zip(blocks, row_parts, column_parts, strict=True)
        if r.any() or c.any()
    ]
    if len({tuple(part.shape[:2]) for part in parts}) != 1 or 0 in parts[0].shape:
        raise EdgecompressError(
            f"a cut leaves the {layer.groups} groups of a convolution with unequal widths"
        )
    tensors = {"weight": torch.cat(parts, 0)}
    if layer.bias is not None:
        tensors["bias"] = _pick(layer.bias, 0, kept["out"])
    sizes = {
        "in_channels": int(kept["in"].sum()),
        "out_channels": int(kept["out"].sum()),
        "groups": len(parts),
    }
    return Cut(tensors, sizes)


def _cut_channelwise(layer: nn.Module, kept: Mapping[str, Tensor]) -> Cut:
    through, size = kept["through"], axis_size(layer, "through")
    named = [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]
    tensors = {
        name: _pick(t, 0, through) for name, t in named if t.dim() == 1 and t.shape[0] == size
    }
    left = int(through.sum())
    if isinstance(layer, nn.GroupNorm):
        return Cut(tensors, {"num_channels": left, "num_groups": left * layer.num_groups // size})
    return Cut(tensors, {"num_parameters" if isinstance(layer, nn.PReLU) else "num_features": left})


def cut(layer: nn.Module | Tensor, kept: Mapping[str, Tensor]) -> Cut:
    """The tensors and attributes of `layer` when only the positions `kept` stay.

    `kept` maps an axis to a bool tensor of its size; an axis that is absent stays whole. For a bare
    tensor the result is under the name `""`.
    """
    if isinstance(layer, Tensor):
        for axis, mask in kept.items():
            layer = _pick(layer, int(axis.removeprefix("dim")), mask)
        return Cut({"": layer.detach().clone()}, {})
    whole = {
        axis: kept.get(axis, torch.ones(axis_size(layer, axis), dtype=torch.bool))
        for axis in axes(layer)
    }
    if isinstance(layer, nn.Linear):
        return _cut_linear(layer, whole)
    if isinstance(layer, _ConvNd):
        return _cut_conv(layer, whole)
    return _cut_channelwise(layer, whole)


@dataclass(frozen=True)
class Placed:
    """Where one of several networks' layers goes in the wide one: for each axis its positions there
    (size,).

    `share` (out,) is what its weights are multiplied by, row by row: 1, or 1 / N where N networks
    write the same output.
    """

    positions: Mapping[str, Tensor]
    share: Tensor


def joined(parts: Sequence[nn.Module], places: Sequence[Placed], sizes: Mapping[str, int]) -> Cut:
    """One layer that holds all `parts`, each at its place; `sizes` are those of its axes. What no
    part fills is zero.

    Parts that share an output position are added, input positions may be shared too. Raises
    `EdgecompressError` when the parts of a grouped or channelwise layer do not lie side by side.
    """
    first = parts[0]
    if isinstance(first, (nn.Linear, _ConvNd)):
        grouped = isinstance(first, _ConvNd) and first.groups > 1
        return (
            _joined_groups(parts, places, sizes) if grouped else _joined_dense(parts, places, sizes)
        )
    tensors, size = {}, axis_size(first, "through")
    taken = torch.cat([place.positions["through"] for place in places])
    if len(taken) != sizes["through"] or len(taken.unique()) != len(taken):
        raise EdgecompressError(
            f"the {type(first).__name__}s of several networks would share channels"
        )
    named = [*first.named_parameters(recurse=False), *first.named_buffers(recurse=False)]
    for name, tensor in named:
        if tensor.dim() != 1 or tensor.shape[0] != size:
            continue
        wide = tensor.new_zeros(len(taken))
        for part, place in zip(parts, places, strict=True):
            wide[place.positions["through"].to(wide.device)] = getattr(part, name).detach()
        tensors[name] = wide
    if isinstance(first, nn.GroupNorm):
        return Cut(
            tensors, {"num_channels": len(taken), "num_groups": first.num_groups * len(parts)}
        )
    return Cut(
        tensors, {"num_parameters" if isinstance(first, nn.PReLU) else "num_features": len(taken)}
    )


def _joined_dense(
    parts: Sequence[nn.Module], places: Sequence[Placed], sizes: Mapping[str, int]
) -> Cut:
    first = parts[0].get_parameter("weight")
    rows, columns = ("in", "out") if isinstance(parts[0], _ConvTransposeNd) else ("out", "in")
    weight = first.new_zeros(sizes[rows], sizes[columns], *first.shape[2:])
    bias = first.new_zeros(sizes["out"])
    for part, place in zip(parts, places, strict=True):
        at = (
            place.positions[rows][:, None].to(weight.device),
            place.positions[columns][None, :].to(weight.device),
        )
        weight[at] += scale_outputs(part, place.share).detach()
        if getattr(part, "bias", None) is not None:
            bias[place.positions["out"].to(bias.device)] += part.get_parameter(
                "bias"
            ).detach() * place.share.to(bias)
    tensors = (
        {"weight": weight}
        if getattr(parts[0], "bias", None) is None
        else {"weight": weight, "bias": bias}
    )
    names = (
        ("in_features", "out_features")
        if isinstance(parts[0], nn.Linear)
        else ("in_channels", "out_channels")
    )
    return Cut(tensors, {names[0]: sizes["in"], names[1]: sizes["out"]})


def _joined_groups(
    parts: Sequence[nn.Module], places: Sequence[Placed], sizes: Mapping[str, int]
) -> Cut:
    """Grouped convolutions lie side by side, group after group: nothing crosses from one part to
    another.
    """
    for axis in ("in", "out"):
        laid = torch.cat([place.positions[axis] for place in places])
        if not torch.equal(laid, torch.arange(sizes[axis])):
            raise EdgecompressError(
                "the channels of several grouped convolutions would not lie side by side"
            )
    tensors = {"weight": torch.cat([part.get_parameter("weight").detach() for part in parts])}
    if getattr(parts[0], "bias", None) is not None:
        tensors["bias"] = torch.cat([part.get_parameter("bias").detach() for part in parts])
    groups = sum(int(getattr(part, "groups", 1)) for part in parts)
    return Cut(
        tensors, {"in_channels": sizes["in"], "out_channels": sizes["out"], "groups": groups}
    )


def reordered(layer: nn.Module | Tensor, orders: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of `layer` with the positions of its axes in another order: position i takes what
    stood at `orders[axis][i]`.

    Of grouped convolutions only depthwise ones can be reordered, with inputs and outputs alike.
    """
    if isinstance(layer, Tensor):
        whole = layer.detach()
        for axis, places in orders.items():
            whole = whole.index_select(int(axis.removeprefix("dim")), places.to(whole.device))
        return {"": whole.clone()}
    tensors = {}
    depthwise = isinstance(layer, _ConvNd) and layer.groups > 1
    rows, columns = ("in", "out") if isinstance(layer, _ConvTransposeNd) else ("out", "in")
    for name, tensor in [
        *layer.named_parameters(recurse=False),
        *layer.named_buffers(recurse=False),
    ]:
        value = tensor.detach()
        if is_mixing(layer) and name == "weight":
            if rows in orders:
                value = value.index_select(0, orders[rows].to(value.device))
            if columns in orders and not depthwise:
                value = value.index_select(1, orders[columns].to(value.device))
        else:
            order = orders.get("out" if is_mixing(layer) else "through")
            if order is not None and value.dim() == 1 and len(value) == len(order):
                value = value.index_select(0, order.to(value.device))
        tensors[name] = value.clone()
    return tensors


def axis_slices(layer: nn.Module, axis: str) -> list[tuple[str, Tensor]]:
    """`(name, tensor)` of every parameter that carries `axis`, moved so that the axis is dimension
    0: shape (size, ...).

    For an ungrouped layer these are views. For the input axis of a grouped convolution the groups
    are laid one after the other, so that row i holds the weights that read input channel i.
    """
    if isinstance(layer, nn.Linear):
        if axis == "in":
            return [("weight", layer.weight.transpose(0, 1))]
        return [
            ("weight", layer.weight),
            *([("bias", layer.bias)] if layer.bias is not None else []),
        ]
    if isinstance(layer, _ConvNd):
        first = "in" if isinstance(layer, _ConvTransposeNd) else "out"
        bias = [("bias", layer.bias)] if axis == "out" and layer.bias is not None else []
        if axis == first:
            return [("weight", layer.weight), *bias]
        blocks = layer.weight.chunk(layer.groups, 0)
        return [("weight", torch.cat([block.transpose(0, 1) for block in blocks], 0)), *bias]
    size = axis_size(layer, axis)
    return [
        (n, p)
        for n, p in layer.named_parameters(recurse=False)
        if p.dim() == 1 and p.shape[0] == size
    ]


def input_sums(layer: nn.Module, values: Tensor) -> Tensor:
    """Sum of `values`, shaped like the weight of a mixing `layer`, over everything that reads each
    input position: (in,).
    """
    if isinstance(layer, nn.Linear):
        return values.sum(0)
    groups = int(getattr(layer, "groups", 1))
    if isinstance(layer, _ConvTransposeNd):
        return values.flatten(1).sum(1)
    return values.reshape(groups, -1, *values.shape[1:]).sum(1).flatten(2).sum(2).reshape(-1)


def output_sums(layer: nn.Module, values: Tensor) -> Tensor:
    """Sum of `values`, shaped like the weight of a mixing `layer`, over everything that makes each
    output position: (out,).
    """
    if not isinstance(layer, _ConvTransposeNd):
        return values.flatten(1).sum(1)
    return values.reshape(layer.groups, -1, *values.shape[1:]).sum(1).flatten(2).sum(2).reshape(-1)


def scale_inputs(layer: nn.Module, factor: Tensor) -> Tensor:
    """The weight of a mixing `layer` when it reads input position i times `factor[i]`; `factor` has
    shape (in,).
    """
    weight: Tensor = layer.weight  # type: ignore[assignment] # no Parameter where functional_call put a tensor in its place
    factor = factor.to(weight)
    if isinstance(layer, nn.Linear):
        return weight * factor
    if not isinstance(layer, _ConvNd):
        raise EdgecompressError(
            f"{type(layer).__name__} reads no mixed channels: only Linear and convolutions do"
        )
    spatial = [1] * (weight.dim() - 2)
    if isinstance(layer, _ConvTransposeNd):
        return weight * factor.reshape(-1, 1, *spatial)
    per_group = factor.reshape(layer.groups, 1, -1, *spatial)
    blocks = weight.reshape(layer.groups, -1, *weight.shape[1:])
    return (blocks * per_group).reshape_as(weight)


def scale_outputs(layer: nn.Module, factor: Tensor) -> Tensor:
    """The weight of a mixing `layer` when its output channel i is multiplied by `factor[i]`;
    `factor` has shape (out,).
    """
    weight = layer.get_parameter("weight")
    factor = factor.to(weight)
    if not isinstance(layer, _ConvTransposeNd):
        return weight * factor.reshape(-1, *[1] * (weight.dim() - 1))
    blocks = weight.reshape(layer.groups, -1, *weight.shape[1:])
    return (blocks * factor.reshape(layer.groups, 1, -1, *[1] * (weight.dim() - 2))).reshape_as(
        weight
    )


def unit_weights(layer: nn.Module) -> float:
    """Weights for one (input, output) pair of a mixing layer; for one output where whole groups are
    cut (`loses_whole_groups`).

    A convolution whose groups are all narrowed holds in * out / groups kernels.
    """
    kernel = 1
    for extent in getattr(layer, "kernel_size", ()):
        kernel *= extent
    groups = int(getattr(layer, "groups", 1))
    if loses_whole_groups(layer):
        return kernel * axis_size(layer, "in") / groups
    return kernel / groups
