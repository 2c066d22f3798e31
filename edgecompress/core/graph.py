"""Channel groups: which channels of a network must live or die together.

    trace(model, example) -> ChannelGraph

Every activation is shadowed by a tensor of integer *labels* of the same shape: equal labels, same
channel. A layer that mixes channels hands out fresh labels; anything that moves data (view, cat,
chunk, permute, ...) is simply executed on the labels; an elementwise operation couples the labels
that meet. What is coupled is one channel, and channels that touch the same layers in the same way
form a group. So coupling is solved for each channel: chunks, channel shuffles and flattened maps
need no code of their own.

A channel whose removal would need other code (a hard-coded view), or that an operation mixes in a
way that cannot be cut exactly (LayerNorm, attention), is *frozen*, with the reason. No weight is
read: shapes come from the meta device.
"""

from __future__ import annotations

import copy
import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from edgecompress.core import layers
from edgecompress.core.labels import LabelTracer
from edgecompress.errors import EdgecompressError, UsageError


@dataclass(frozen=True)
class Member:
    """The part of a group in one axis of one layer: `index` (C, r) holds the r positions that each
    of C channels owns there.
    """

    layer: str
    axis: str
    index: Tensor


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """`size` channels that live or die one by one, each across all `members`. `frozen` is the
    reason they must all stay.
    """

    name: str
    size: int
    members: tuple[Member, ...]
    frozen: str | None = None

    def __repr__(self) -> str:
        return f"ChannelGroup({self.name!r}, size={self.size}, members={len(self.members)})"


@dataclass(frozen=True)
class ChannelGraph:
    """All channel groups of a model as traced with inputs of `input_shape` (N, C, H, W)."""

    groups: tuple[ChannelGroup, ...]
    frozen: tuple[ChannelGroup, ...]
    input_shape: tuple[int, ...]
    output_shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Shape of the output of every mixing layer (of its last call), by layer name; its batch is the
    example's.
    """

    def group(self, name: str) -> ChannelGroup:
        """The prunable group called `name`. Raises `UsageError` naming the known ones."""
        for group in self.groups:
            if group.name == name:
                return group
        raise UsageError(
            f"no prunable group '{name}': there are {', '.join(g.name for g in self.groups)}"
        )


def computed_tensors(model: nn.Module) -> list[Tensor]:
    """Tensors that hang on modules as plain attributes, as torch.nn.utils.prune leaves `weight`:
    `copy.deepcopy` refuses them.
    """
    return [
        value
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor)
    ]


def meta_copy(model: nn.Module) -> nn.Module:
    """A structural copy of `model` in eval mode whose tensors are on the meta device: no weight is
    read or copied.
    """
    memo: dict[int, object] = {
        id(t): torch.empty_like(t, device="meta", requires_grad=False)
        for t in computed_tensors(model)
    }
    for tensor in [*model.parameters(), *model.buffers()]:
        empty = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = (
            nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
        )
    return copy.deepcopy(model, memo).eval()


class _OwnThread(fx.Tracer):
    """Records what its own thread runs. torch.fx changes how every module of the process is called
    meanwhile: here as without a trace.
    """

    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.get_ident()

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)


_tracing = threading.RLock()
"""Held by the thread that traces: two at once would undo each other's change of `nn.Module`."""


def symbolic_trace(model: nn.Module) -> fx.GraphModule:
    """`torch.fx` trace of `model`; other threads may run and train networks meanwhile. Raises
    `UsageError` naming what stops it.
    """
    try:
        with _tracing:
            tracer = _OwnThread()
            graph = tracer.trace(model)
            return fx.GraphModule(tracer.root, graph, type(model).__name__)
    except Exception as error:  # fx raises whatever the model's own code raises on a Proxy
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(
            f"{type(model).__name__} cannot be traced by torch.fx: {reason}; make its "
            "forward free of branches on tensor values"
        ) from error


def trace(model: nn.Module, example: Tensor) -> ChannelGraph:
    """The channel groups of `model` for inputs like `example` (N, C, H, W), of which only shape and
    dtype are used.

    The model is traced in eval mode, as a copy on the meta device; it is neither changed nor read.
    Raises `UsageError` when torch.fx cannot trace it or the example does not fit.
    """
    traced = symbolic_trace(meta_copy(model))
    tracer = LabelTracer(traced)
    try:
        tracer.run(torch.empty_like(example, device="meta"))
    except EdgecompressError:
        raise
    except Exception as error:
        raise UsageError(
            f"{type(model).__name__} cannot run on an input of shape {tuple(example.shape)}: "
            f"{str(error).splitlines()[0]}"
        ) from error
    return _groups(tracer, tuple(example.shape))


def _classes(edges: list[Tensor], count: int) -> Tensor:
    """Smallest label that every label is coupled to, shape (count,): connected components by
    pointer jumping.
    """
    root = torch.arange(count)
    if edges:
        pairs = torch.unique(torch.cat(edges), dim=0)
        while True:
            low = torch.minimum(root[pairs[:, 0]], root[pairs[:, 1]])
            new = root.clone()
            for side in (0, 1):
                new.scatter_reduce_(0, root[pairs[:, side]], low, "amin")
            new = new[new]
            if torch.equal(new, root):
                break
            root = new
    return root


def _groups(tracer: LabelTracer, input_shape: tuple[int, ...]) -> ChannelGraph:
    root = _classes(tracer.edges, tracer.count)
    axes = list(tracer.recorded)
    positions = {key: root[labels] for key, labels in tracer.recorded.items()}

    # A channel is known by the axes it touches, how often, and where it was handed out; equal marks
    # make one group.
    marks: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for number, key in enumerate(axes):
        values, counts = positions[key].unique(return_counts=True)
        for value, times in zip(values.tolist(), counts.tolist(), strict=True):
            marks[value].append((number, times))
    reasons: dict[int, str] = {}
    for labels, why in tracer.freezes:
        for value in root[labels].unique().tolist():
            reasons.setdefault(value, why)
    signatures: dict[tuple[tuple[tuple[int, int], ...], str | None], list[int]] = defaultdict(list)
    for value, mark in marks.items():
        signatures[(tuple(mark), reasons.get(value))].append(value)

    group_of = torch.full((tracer.count,), -1)
    rank_of = torch.zeros(tracer.count, dtype=torch.long)
    for number, values in enumerate(signatures.values()):
        owned = torch.tensor(values).sort().values
        group_of[owned] = number
        rank_of[owned] = torch.arange(len(values))

    sizes = [len(values) for values in signatures.values()]
    members: dict[int, list[Member]] = defaultdict(list)
    for (layer, axis), values in positions.items():
        owner, rank = group_of[values], rank_of[values]
        for number in owner.unique().tolist():
            where = (owner == number).nonzero()[:, 0]
            ordered = where[rank[where].argsort(stable=True)]
            members[number].append(Member(layer, axis, ordered.reshape(sizes[number], -1)))

    prunable: list[ChannelGroup] = []
    frozen: list[ChannelGroup] = []
    names: dict[str, int] = defaultdict(int)
    for number, ((_, reason), values) in enumerate(signatures.items()):
        parts = tuple(members[number])
        name = next((m.layer for m in parts if m.axis != "in"), "input")
        names[name] += 1
        label = name if names[name] == 1 else f"{name}:{names[name]}"
        group = ChannelGroup(label, len(values), parts, reason)
        (prunable if reason is None else frozen).append(group)
    return ChannelGraph(tuple(prunable), tuple(frozen), input_shape, dict(tracer.output_shapes))


def consumers(model: nn.Module, group: ChannelGroup) -> list[Member]:
    """The members of `group` that are inputs of a mixing layer: what a mask or a gate acts on.

    The input of a convolution whose groups are dropped whole (a depthwise one among them) is not
    one: it is cut with the group.
    """
    inputs = (m for m in group.members if m.axis == "in")
    return [m for m in inputs if not layers.loses_whole_groups(model.get_submodule(m.layer))]
