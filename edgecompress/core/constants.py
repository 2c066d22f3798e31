"""Channels whose output never changes, or is never read, removed where that is exact: the shrinking
of a zeroed network.

Every activation is run once on values that are either a known constant or NaN for "depends on the
input": the network's own layers carry them forward, and NaN stays NaN. A channel that reaches all
its consumers as a constant is folded into their biases and dropped. Through a zero-padded
convolution a constant other than 0 is wrong at the borders, so such a channel stays, with the
reason.

"Zero" means that every weight is zero, never that they sum to zero. A channel that every consumer
multiplies by zero is not read, and goes whatever it is. What goes may silence or unread others, so
this is repeated until nothing goes.
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


@dataclass(frozen=True)
class ConstantChannels:
    """One group of `size` channels: `constant` never change or are `unread`, of these `removed`
    went; `reason` says why not all.
    """

    group: str
    size: int
    constant: int
    unread: int
    removed: int
    reason: str


class _ConstantRun(fx.Interpreter):
    """Runs a network on NaN for "unknown"; keeps what every mixing layer reads: a value, or NaN,
    for each input position.
    """

    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__(traced)
        self.read: dict[str, Tensor] = {}

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Constants through one layer; a mixing layer gives a constant only where it provably makes
        one.
        """
        module = self.fetch_attr(str(target))
        if not layers.is_mixing(module):
            out = super().call_module(target, args, kwargs)
            return _norm_constants(module, out) if isinstance(module, layers.BatchNorm) else out
        dim = 1 if layers.is_conv(module) else -1
        value = _flat_constant(args[0], dim)
        known = self.read.get(str(target))
        same = value if known is None else torch.where(known == value, value, torch.nan)
        self.read[str(target)] = same
        shape = _output_shape(module, args[0])
        produced = _produced(module, value)
        view = [1] * len(shape)
        view[dim] = -1
        return produced.reshape(view).expand(shape).clone()


def _output_shape(module: nn.Module, x: Tensor) -> tuple[int, ...]:
    empty = {n: torch.empty_like(p, device="meta") for n, p in module.named_parameters()}
    out = torch.func.functional_call(module, empty, (torch.empty_like(x, device="meta"),))
    return tuple(out.shape)


def _flat_constant(x: Tensor, dim: int) -> Tensor:
    """The value (size,) of each channel along `dim` where it is the same everywhere, else NaN."""
    flat = x.movedim(dim, 0).reshape(x.shape[dim], -1)
    same = (flat == flat[:, :1]).all(1)
    return torch.where(same, flat[:, 0], torch.nan)


def _norm_constants(norm: nn.Module, out: Tensor) -> Tensor:
    """A BatchNorm whose scale is zero gives its bias, whatever it reads."""
    weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    if weight is None or not bool((weight == 0).any()):
        return out
    value = torch.zeros_like(weight) if bias is None else bias.detach()
    shape = [1, -1, *[1] * (out.dim() - 2)]
    return torch.where((weight == 0).reshape(shape), value.reshape(shape).expand_as(out), out)


def zero_padded(module: nn.Module) -> bool:
    """True when a layer pads its input with zeros, so that a constant looks different at the
    borders.
    """
    padding = getattr(module, "padding", 0)
    pads = (
        padding != "valid"
        if isinstance(padding, str)
        else any(padding if isinstance(padding, tuple) else (padding,))
    )
    transposed = bool(getattr(module, "transposed", False))
    return transposed or (bool(pads) and getattr(module, "padding_mode", "zeros") == "zeros")


def _produced(module: nn.Module, value: Tensor) -> Tensor:
    """The constant (out,) that each output channel gives when it reads `value` (in,), NaN where it
    varies.
    """
    rows = next(t for n, t in layers.axis_slices(module, "out") if n == "weight").detach()
    out_size, groups = rows.shape[0], int(getattr(module, "groups", 1))
    bias = getattr(module, "bias", None)
    base = torch.zeros(out_size, dtype=rows.dtype) if bias is None else bias.detach()
    silent = (rows == 0).reshape(out_size, -1).all(1)
    usable = value.clone()
    if zero_padded(module):
        usable[usable != 0] = torch.nan
    # each output row reads the inputs of its own group; a weight of zero hides even an unknown
    # input
    per_group = usable.reshape(groups, -1).repeat_interleave(out_size // groups, 0)
    taps = (
        rows.reshape(out_size, per_group.shape[1], -1)
        if not getattr(module, "transposed", False)
        else None
    )
    if taps is None:
        return torch.where(silent, base, torch.nan)
    reads = (taps != 0).any(2)
    terms = torch.where(reads, taps.sum(2) * per_group, 0.0)
    return terms.sum(1) + base


def constant_inputs(model: nn.Module, example: Tensor) -> dict[str, Tensor]:
    """For every mixing layer the constant (in,) that stands at each input position, NaN where it
    depends on the input.
    """
    was_training = model.training
    run = _ConstantRun(symbolic_trace(model.eval()))
    try:
        with torch.no_grad():
            run.run(torch.full_like(example[:1], torch.nan))
    finally:
        model.train(was_training)
    return run.read


def _absorbable(
    model: nn.Module, group: ChannelGroup, read: dict[str, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """For each channel of `group` (C,): does it never change or is never read; can every consumer
    do without it; does nobody read it?
    """
    known, exact, unread = (torch.ones(group.size, dtype=torch.bool) for _ in range(3))
    for member in consumers(model, group):
        layer = model.get_submodule(member.layer)
        value = read[member.layer][member.index]
        columns = next(t for n, t in layers.axis_slices(layer, "in") if n == "weight").detach()
        ignored = (columns == 0).flatten(1).all(1).cpu()[member.index].all(1)
        unread &= ignored
        known &= ~value.isnan().any(1) | ignored
        if zero_padded(layer):
            exact &= (value == 0).all(1) | ignored
    return known, known & exact, unread


def _absorb(model: nn.Module, dropped: dict[str, Tensor]) -> None:
    """Add to each layer's bias what its `dropped` inputs (NaN where kept) always contributed. In
    place.
    """
    for name, value in dropped.items():
        layer = model.get_submodule(name)
        columns = next(t for n, t in layers.axis_slices(layer, "in") if n == "weight").detach()
        used = value.nan_to_num(0.0).double()
        groups, out_size = int(getattr(layer, "groups", 1)), layers.axis_size(layer, "out")
        sums = (
            columns.double().flatten(2).sum(2) if columns.dim() > 2 else columns.double()
        )  # (in, out / groups)
        parts = (sums * used[:, None]).reshape(groups, -1, sums.shape[1]).sum(1).reshape(-1)
        if not bool((parts != 0).any()):
            continue
        old = getattr(layer, "bias", None)
        base = torch.zeros(out_size, dtype=torch.float64) if old is None else old.detach().double()
        layer.register_parameter("bias", nn.Parameter((base + parts).to(columns.dtype)))


def drop_constant_channels(
    model: nn.Module, graph: ChannelGraph, example: Tensor
) -> tuple[nn.Module, list[ConstantChannels]]:
    """A smaller model that computes exactly what `model` computes, and a row for each group that
    had constant or unread channels.

    `graph` is the trace of `model` for inputs like `example`. Masks of torch.nn.utils.prune are
    made permanent in the result. A group keeps at least one channel. Groups without a consumer of
    their own are left alone.
    """
    small, rows = _drop_once(without_masks(model), graph, example)
    table = {row.group: row for row in rows}
    while any(row.removed for row in rows):
        small, rows = _drop_once(small, trace(small, example), example)
        table |= {row.group: _joined(table.get(row.group), row) for row in rows}
    return small, list(table.values())


def without_masks(model: nn.Module) -> nn.Module:
    """A copy of `model` in which the masks of torch.nn.utils.prune are multiplied into the weights
    and gone.
    """
    baked = copy.deepcopy(model, {id(t): t.detach().clone() for t in computed_tensors(model)})
    for module in baked.modules():
        for name in [
            n.removesuffix("_mask")
            for n, _ in module.named_buffers(recurse=False)
            if n.endswith("_mask")
        ]:
            if hasattr(module, f"{name}_orig"):
                prune.remove(module, name)
    return baked


def _joined(before: ConstantChannels | None, now: ConstantChannels) -> ConstantChannels:
    """One row for what went from a group in earlier passes and in this one."""
    if before is None:
        return now
    gone = before.removed
    return ConstantChannels(
        now.group,
        before.size,
        gone + now.constant,
        before.unread + now.unread,
        gone + now.removed,
        now.reason,
    )


def _drop_once(
    model: nn.Module, graph: ChannelGraph, example: Tensor
) -> tuple[nn.Module, list[ConstantChannels]]:
    read = constant_inputs(model, example)
    keep: dict[ChannelGroup, Tensor] = {}
    rows: list[ConstantChannels] = []
    dropped: dict[str, Tensor] = {}
    for group in graph.groups:
        members = consumers(model, group)
        if not members:
            continue
        constant, gone, unread = _absorbable(model, group, read)
        reason = ""
        if (constant & ~gone).any():
            reason = (
                "a constant other than 0 meets a zero-padded convolution, which differs at "
                "the borders"
            )
        if gone.all():
            gone[0] = False
            reason = "the last channel of a group stays"
        if constant.any():
            rows.append(
                ConstantChannels(
                    group.name,
                    group.size,
                    int(constant.sum()),
                    int(unread.sum()),
                    int(gone.sum()),
                    reason,
                )
            )
        if not gone.any():
            continue
        keep[group] = ~gone
        for member in members:
            layer = model.get_submodule(member.layer)
            value = dropped.setdefault(
                member.layer,
                torch.full((layers.axis_size(layer, "in"),), torch.nan, dtype=torch.float64),
            )
            where = member.index[gone].reshape(-1)
            value[where] = read[member.layer][where].to(value.dtype)
    if not keep:
        return model, rows
    absorbed = copy.deepcopy(model)
    _absorb(absorbed, dropped)
    return shrink(absorbed, keep), rows
