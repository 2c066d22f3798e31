"""Channels whose output is constant or never read, removed where that is exact: the shrinking of a
network with zeroed weights.

Every activation is computed once on values that are either a known constant or NaN for "depends on
the input". The network's own layers propagate them, and NaN stays NaN. A channel that reaches all
its consumers as a constant is folded into their biases and dropped. Through a zero-padded
convolution a constant other than 0 is wrong at the borders, so such a channel stays, with the
reason.

A channel counts as zero when every weight is zero, never because its weights sum to zero. A channel
that every consumer multiplies by zero is not read, and is dropped whatever its value. What is
dropped may leave further channels constant or unread, so this is repeated until nothing changes.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import prune

from edgecompress.core import layers
from edgecompress.core.graph import (
    ChannelGraph,
    ChannelGroup,
    computed_tensors,
    consumers,
    symbolic_trace,
    trace,
)
from edgecompress.core.shrink import shrink
from edgecompress.errors import UsageError


@dataclass(frozen=True)
class ConstantChannels:
    """One group of `size` channels: `constant` are constant or unread, of these `unread` are not
    read and `removed` were dropped; `reason` says why not all.
    """

    group: str
    size: int
    constant: int
    unread: int
    removed: int
    reason: str


def drop_constant_channels(
    model: nn.Module, graph: ChannelGraph, example: Tensor
) -> tuple[nn.Module, list[ConstantChannels]]:
    """A smaller model that computes exactly what `model` computes, and a row for each group that
    had constant or unread channels.

    `graph` is the trace of `model` for inputs like `example` (N, C, H, W); it is traced again where
    masks of `torch.nn.utils.prune` are made permanent. A group keeps at least one channel.
    Groups without a consumer of their own are left alone.
    """
    plain = without_masks(model)
    if computed_tensors(model):
        graph = trace(plain, example)
    small, rows = _drop_once(plain, graph, example)
    table = {row.group: row for row in rows}
    while any(row.removed for row in rows):
        small, rows = _drop_once(small, trace(small, example), example)
        table |= {row.group: _total(table.get(row.group), row) for row in rows}
    return small, list(table.values())


def _total(before: ConstantChannels | None, now: ConstantChannels) -> ConstantChannels:
    """One row for what was dropped from a group in earlier passes and in this one."""
    if before is None:
        return now
    return ConstantChannels(
        group=now.group,
        size=before.size,
        constant=before.removed + now.constant,
        unread=before.unread + now.unread,
        removed=before.removed + now.removed,
        reason=now.reason,
    )


def without_masks(model: nn.Module) -> nn.Module:
    """A copy of `model` in which the masks of `torch.nn.utils.prune` are multiplied into the
    weights and removed.
    """
    baked = copy.deepcopy(model, {id(t): t.detach().clone() for t in computed_tensors(model)})
    for module in baked.modules():
        buffers = [name for name, _ in module.named_buffers(recurse=False)]
        for name in [b.removesuffix("_mask") for b in buffers if b.endswith("_mask")]:
            if hasattr(module, f"{name}_orig"):
                prune.remove(module, name)
    return baked


def _drop_once(
    model: nn.Module, graph: ChannelGraph, example: Tensor
) -> tuple[nn.Module, list[ConstantChannels]]:
    """One pass over all groups: what is constant or unread in `model` as it is now."""
    read = constant_inputs(model, example)
    keep: dict[ChannelGroup, Tensor] = {}
    rows: list[ConstantChannels] = []
    for group in graph.groups:
        if not consumers(model, group):
            continue
        state = _state(model, group, read)
        dropped, reason = _droppable(state)
        if state.constant.any():
            rows.append(_row(group, state, dropped, reason))
        if dropped.any():
            keep[group] = ~dropped
    if not keep:
        return model, rows

    absorbed = copy.deepcopy(model)
    _absorb(absorbed, _dropped_inputs(model, keep, read))
    return shrink(absorbed, keep), rows


# -- Which channels of a group can be dropped


@dataclass(frozen=True)
class _State:
    """What is known of each channel of a group; bool (C,) each."""

    constant: Tensor
    """The same for every input, or not read."""
    exact: Tensor
    """Constant, and every consumer can do without it."""
    unread: Tensor
    """Every consumer multiplies it by zero."""


def _state(model: nn.Module, group: ChannelGroup, read: dict[str, Tensor]) -> _State:
    constant = torch.ones(group.size, dtype=torch.bool)
    foldable = torch.ones(group.size, dtype=torch.bool)
    unread = torch.ones(group.size, dtype=torch.bool)
    for member in consumers(model, group):
        layer = model.get_submodule(member.layer)
        value = _read(read, model, member.layer)[member.index]
        all_zero = (_rows(layer, "in") == 0).flatten(1).all(1).cpu()
        ignored = all_zero[member.index].all(1)
        unread &= ignored
        constant &= ~value.isnan().any(1) | ignored
        if zero_padded(layer):
            foldable &= (value == 0).all(1) | ignored
    return _State(constant, constant & foldable, unread)


def _droppable(state: _State) -> tuple[Tensor, str]:
    """The channels to drop (C,), and why not all constant ones are."""
    reason = ""
    if (state.constant & ~state.exact).any():
        reason = (
            "a constant other than 0 meets a zero-padded convolution, which differs at the borders"
        )
    dropped = state.exact.clone()
    if dropped.all():
        dropped[0] = False
        reason = "the last channel of a group stays"
    return dropped, reason


def _row(group: ChannelGroup, state: _State, dropped: Tensor, reason: str) -> ConstantChannels:
    return ConstantChannels(
        group=group.name,
        size=group.size,
        constant=int(state.constant.sum()),
        unread=int(state.unread.sum()),
        removed=int(dropped.sum()),
        reason=reason,
    )


# -- What the consumers of dropped channels absorb


def _dropped_inputs(
    model: nn.Module, keep: dict[ChannelGroup, Tensor], read: dict[str, Tensor]
) -> dict[str, Tensor]:
    """For each consumer the constants (in,) that it reads from dropped channels, NaN elsewhere."""
    inputs: dict[str, Tensor] = {}
    for group, mask in keep.items():
        for member in consumers(model, group):
            size = layers.axis_size(model.get_submodule(member.layer), "in")
            if member.layer not in inputs:
                inputs[member.layer] = torch.full((size,), torch.nan, dtype=torch.float64)
            positions = member.index[~mask].reshape(-1)
            constants = _read(read, model, member.layer)[positions]
            inputs[member.layer][positions] = constants.to(torch.float64)
    return inputs


def _absorb(model: nn.Module, inputs: dict[str, Tensor]) -> None:
    """Add to each layer's bias what `inputs` (in,), NaN where kept, always contributed. Changes
    `model` in place.
    """
    for name, value in inputs.items():
        layer = model.get_submodule(name)
        weight = _rows(layer, "in").double()  # (in, out / groups, *kernel)
        per_input = weight.flatten(2).sum(2) if weight.dim() > 2 else weight
        groups = int(getattr(layer, "groups", 1))
        terms = (per_input * value.nan_to_num(0.0)[:, None]).reshape(groups, -1, per_input.shape[1])
        contributed = terms.sum(1).reshape(-1)  # (out,)
        if not bool((contributed != 0).any()):
            continue
        old = getattr(layer, "bias", None)
        bias = contributed if old is None else old.detach().double() + contributed
        layer.register_parameter("bias", nn.Parameter(bias.to(layer.get_parameter("weight").dtype)))


def _read(read: dict[str, Tensor], model: nn.Module, layer: str) -> Tensor:
    """What `layer` reads (in,); unknown where its function is called with its tensors."""
    size = layers.axis_size(model.get_submodule(layer), "in")
    return read.get(layer, torch.full((size,), torch.nan))


# -- Constants through the network


def constant_inputs(model: nn.Module, example: Tensor) -> dict[str, Tensor]:
    """For every mixing layer the constant (in,) at each input position, NaN where it depends on the
    input. `example` (N, C, H, W) is an input. Empty for a network that torch.fx cannot trace.
    """
    was_training = model.training
    try:
        run = _ConstantRun(symbolic_trace(model.eval()))
    except UsageError:
        model.train(was_training)
        return {}
    try:
        with torch.no_grad():
            run.run(torch.full_like(example[:1], torch.nan))
    finally:
        model.train(was_training)
    return run.read


class _ConstantRun(fx.Interpreter):
    """Runs a network on NaN for "unknown"; `read` has what every mixing layer reads at each input
    position, a constant or NaN.
    """

    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__(traced)
        self.read: dict[str, Tensor] = {}

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Constants through one layer; a mixing layer gives a constant only where it provably
        writes one.
        """
        name = str(target)
        module = self.fetch_attr(name)
        if not layers.is_mixing(module):
            out = super().call_module(target, args, kwargs)
            return _norm_constants(module, out) if isinstance(module, layers.BatchNorm) else out

        dim = 1 if layers.is_conv(module) else -1
        value = _constant_along(args[0], dim)
        known = self.read.get(name)  # a layer called twice must read the same constant both times
        self.read[name] = value if known is None else torch.where(known == value, value, torch.nan)

        shape = _output_shape(module, args[0])
        view = [1] * len(shape)
        view[dim] = -1
        return _written(module, value).reshape(view).expand(shape).clone()


def _output_shape(module: nn.Module, x: Tensor) -> tuple[int, ...]:
    empty = {n: torch.empty_like(p, device="meta") for n, p in module.named_parameters()}
    out = torch.func.functional_call(module, empty, (torch.empty_like(x, device="meta"),))
    return tuple(out.shape)


def _constant_along(x: Tensor, dim: int) -> Tensor:
    """The value (size,) of each channel along `dim` where it is the same everywhere, else NaN."""
    flat = x.movedim(dim, 0).reshape(x.shape[dim], -1)
    same = (flat == flat[:, :1]).all(1)
    return torch.where(same, flat[:, 0], torch.nan)


def _norm_constants(norm: nn.Module, out: Tensor) -> Tensor:
    """`out` (N, C, ...) of a BatchNorm, with the bias where the scale is zero, whatever it
    reads.
    """
    weight = getattr(norm, "weight", None)
    bias = getattr(norm, "bias", None)
    if weight is None or not bool((weight == 0).any()):
        return out
    value = torch.zeros_like(weight) if bias is None else bias.detach()
    shape = [1, -1, *[1] * (out.dim() - 2)]
    return torch.where((weight == 0).reshape(shape), value.reshape(shape).expand_as(out), out)


def zero_padded(module: nn.Module) -> bool:
    """True when a layer pads its input with zeros, so that a constant differs at the borders."""
    if bool(getattr(module, "transposed", False)):
        return True
    if getattr(module, "padding_mode", "zeros") != "zeros":
        return False
    padding = getattr(module, "padding", 0)
    if isinstance(padding, str):
        return padding != "valid"
    return any(padding if isinstance(padding, tuple) else (padding,))


def _written(module: nn.Module, value: Tensor) -> Tensor:
    """The constant (out,) that each output channel of a mixing layer has when it reads `value`
    (in,), NaN where it varies.
    """
    weight = _rows(module, "out")  # of a transposed convolution grouped by output
    bias = getattr(module, "bias", None)
    size = len(weight)
    base = torch.zeros(size, dtype=weight.dtype) if bias is None else bias.detach()
    if bool(getattr(module, "transposed", False)):
        silent = (weight == 0).reshape(size, -1).all(1)
        return torch.where(silent, base, torch.nan)

    usable = value.clone()
    if zero_padded(module):
        usable[usable != 0] = torch.nan
    # each output reads the inputs of its own group; a zero weight hides even an unknown input
    groups = int(getattr(module, "groups", 1))
    inputs = usable.reshape(groups, -1).repeat_interleave(size // groups, 0)
    taps = weight.reshape(size, inputs.shape[1], -1)
    reads = (taps != 0).any(2)
    terms = torch.where(reads, taps.sum(2) * inputs, 0.0)
    return terms.sum(1) + base


def _rows(layer: nn.Module, axis: str) -> Tensor:
    """The weight of a mixing layer with `axis` in front, (size of the axis, ...)."""
    return next(t for name, t in layers.axis_slices(layer, axis) if name == "weight").detach()
