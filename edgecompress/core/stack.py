"""One wide network that equals the average of several of the same kind: `stack([a, b])(x) == (a(x)
+ b(x)) / 2` (law 4).

Where one network has a channel group of C channels, the wide one has N * C: those of the first
network, then those of the second, ... In dense layers the weights from one network's channels to
another's exist and are zero; grouped and depthwise layers stand side by side; BatchNorms carry
their statistics. The last layers read all networks and write their mean.

Where each position stands is read off two traces: that of one network, and that of its wide form.
So flattened maps, concats and residual streams need no code of their own.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edgecompress.core import layers
from edgecompress.core.graph import ChannelGraph, ChannelGroup, meta_copy, trace
from edgecompress.core.labels import INPUT, OUTPUT
from edgecompress.core.layers import Cut, Placed
from edgecompress.core.shrink import find, kept_positions, rebuilt
from edgecompress.errors import EdgecompressError, UsageError

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}

Positions = dict[tuple[str, str], list[Tensor]]
"""For each axis of each layer the places in the wide network of every network's positions, (size,)
each.
"""


class Averaged(nn.Module):
    """The mean over networks of outputs that stand side by side: (B, N * K, ...) to (B, K, ...)."""

    def __init__(self, wide: nn.Module, count: int) -> None:
        super().__init__()
        self.wide, self.count = wide, count

    def forward(self, x: Tensor) -> Tensor:
        """Mean output of the networks."""
        y: Tensor = self.wide(x)
        split: Tensor = y.unflatten(1, (self.count, -1))
        return split.mean(1)


def stack(models: Sequence[nn.Module], example: Tensor, *, heads: str = "average") -> nn.Module:
    """The wide network of `models`, which are of one kind and size, for inputs like `example` (B,
    ...); the parts are not changed.

    `heads` is `average`: the outputs are averaged, inside the last layer where everything after it
    is affine, else behind it (`Averaged`); or `separate`: the outputs stand side by side, (B, sum
    of K), and each network may have its own number K. The result is in eval mode and is compared
    with its parts. Raises `UsageError` for parts that differ, naming every tensor, and for a
    network with channels that must stay as they are.
    """
    if heads not in ("average", "separate"):
        raise UsageError(f"heads '{heads}' is not known: allowed are average, separate")
    parts, outputs = (
        _with_equal_heads(models, example) if heads == "separate" else (list(models), [])
    )
    check_alike(parts)
    parts = [copy.deepcopy(model).eval() for model in parts]
    if len(parts) == 1:
        return parts[0]
    graph = trace(parts[0], example)
    _check_free(graph, parts[0])
    if heads == "separate":
        wide = _checked(
            _stacked(parts, graph, example, widen_output=True), parts, example, side_by_side=True
        )
        return _without_padding(wide, outputs, example)
    with contextlib.suppress(UsageError):  # a BatchNorm of the outputs cannot write a sum
        wide = _stacked(parts, graph, example, widen_output=False)
        if _difference(wide, parts, example, side_by_side=False) <= _allowed(example):
            return wide
    return _checked(
        Averaged(_stacked(parts, graph, example, widen_output=True), len(parts)),
        parts,
        example,
        side_by_side=False,
    )


def check_stackable(
    models: Sequence[nn.Module], example: Tensor, *, heads: str = "average"
) -> None:
    """Raises `UsageError`, as `stack` would, for networks that differ or cannot be made wider: what
    is known without their values.
    """
    parts = _with_equal_heads(models, example)[0] if heads == "separate" else list(models)
    check_alike(parts)
    graph = trace(parts[0], example)
    _check_free(graph, parts[0])
    grown = [*graph.groups, *(g for g in graph.frozen if g.frozen == OUTPUT)]
    _join(parts, _side_by_side(parts, graph, grown), on_meta=True)


def with_one_head(model: nn.Module, example: Tensor) -> nn.Module:
    """`model`, perhaps shrunk; where it is `Averaged`, a network of its parts' own kind whose last
    layers are the mean of theirs.

    Then the outputs change, since what follows the last layers is not affine.
    """
    if not isinstance(model, Averaged):
        return model
    wide, count = model.wide, model.count
    head = next(group for group in trace(wide, example).frozen if group.frozen == OUTPUT)
    each = head.size // count
    single: list[nn.Module] = []
    for number in range(count):
        kept = kept_positions(wide, {head: torch.arange(head.size) // each == number})
        single.append(
            rebuilt(wide, {name: layers.cut(find(wide, name), axes) for name, axes in kept.items()})
        )
    states = [one.state_dict() for one in single]
    for name, value in states[0].items():
        if value.is_floating_point():
            value.copy_(torch.stack([state[name].double() for state in states]).mean(0))
    return single[0]


def _with_equal_heads(
    models: Sequence[nn.Module], example: Tensor
) -> tuple[list[nn.Module], list[int]]:
    """The networks, their outputs padded with zeros to the most that one of them has, and how many
    each had.
    """
    graphs = [trace(model, example) for model in models]
    heads = [
        next((group for group in graph.frozen if group.frozen == OUTPUT), None) for graph in graphs
    ]
    counts = [0 if head is None else head.size for head in heads]
    if len(set(counts)) == 1 or 0 in counts:
        return list(models), counts
    padded = []
    for model, head, count in zip(models, heads, counts, strict=True):
        changed: dict[str, Cut] = {}
        for member in head.members if head is not None and count < max(counts) else ():
            layer = find(model, member.layer)
            if isinstance(layer, Tensor) or member.index.shape != (count, 1):
                raise UsageError(
                    f"the outputs of {type(model).__name__} are not those of one layer each: "
                    "its head cannot be kept apart"
                )
            sizes = {axis: layers.axis_size(layer, axis) for axis in layers.axes(layer)}
            here = Placed({axis: torch.arange(size) for axis, size in sizes.items()}, torch.ones(1))
            changed[member.layer] = layers.joined(
                [layer], [here], {**sizes, member.axis: max(counts)}
            )
        padded.append(rebuilt(model, changed) if changed else model)
    return padded, counts


def _without_padding(wide: nn.Module, counts: Sequence[int], example: Tensor) -> nn.Module:
    """`wide` without the outputs that `_with_equal_heads` added."""
    most = max(counts)
    if all(count == most for count in counts):
        return wide
    keep = torch.cat([torch.arange(most) < count for count in counts])
    graph = trace(wide, example)
    head = next(group for group in graph.frozen if group.frozen == OUTPUT)
    return rebuilt(
        wide,
        {
            name: layers.cut(find(wide, name), axes)
            for name, axes in kept_positions(wide, {head: keep}).items()
        },
    )


def check_alike(models: Sequence[nn.Module]) -> None:
    """Raises `UsageError` naming every tensor in which a network differs from the first in name or
    shape.
    """
    if not models:
        raise UsageError("no network to stack: give at least one")
    first = {name: tuple(t.shape) for name, t in models[0].state_dict().items()}
    for number, model in enumerate(models[1:], start=2):
        other = {name: tuple(t.shape) for name, t in model.state_dict().items()}
        wrong = [
            f"{n} {first.get(n, 'absent')} / {other.get(n, 'absent')}"
            for n in {**first, **other}
            if first.get(n) != other.get(n)
        ]
        if wrong or type(model) is not type(models[0]):
            kinds = (
                f" ({type(models[0]).__name__} / {type(model).__name__})"
                if type(model) is not type(models[0])
                else ""
            )
            raise UsageError(
                f"networks 1 and {number} differ{kinds} in {len(wrong)} tensor(s): "
                f"{', '.join(wrong)}; distil one into the other instead: "
                "edgecompress distill"
            )


def _check_free(graph: ChannelGraph, model: nn.Module) -> None:
    for group in graph.frozen:
        if group.frozen not in (INPUT, OUTPUT):
            raise UsageError(
                f"{type(model).__name__} cannot be stacked: group '{group.name}' must stay "
                f"as it is ({group.frozen})"
            )


def _stacked(
    parts: Sequence[nn.Module], graph: ChannelGraph, example: Tensor, *, widen_output: bool
) -> nn.Module:
    """The wide network; where `widen_output` is false its last layers write the sum of the parts'
    outputs, each divided by N.
    """
    grown = [*graph.groups, *(g for g in graph.frozen if widen_output and g.frozen == OUTPUT)]
    shapes = _join(parts, _side_by_side(parts, graph, grown), on_meta=True)
    wide_graph = trace(shapes, example)
    return _join(parts, _places(parts, graph, grown, wide_graph), on_meta=False)


def _side_by_side(
    parts: Sequence[nn.Module], graph: ChannelGraph, grown: Sequence[ChannelGroup]
) -> Positions:
    """Positions with each network's whole axis after the other's: good enough for the shapes."""
    free = _grown_positions(graph, grown)
    found: Positions = {}
    for key, (size, moved) in free.items():
        fixed = (~moved).sum().item()
        layout = []
        for number in range(len(parts)):
            places = torch.arange(size)
            places[moved] = int(fixed) + number * int(moved.sum()) + torch.arange(int(moved.sum()))
            places[~moved] = torch.arange(int(fixed))
            layout.append(places)
        found[key] = layout
    return found


def _grown_positions(
    graph: ChannelGraph, grown: Sequence[ChannelGroup]
) -> dict[tuple[str, str], tuple[int, Tensor]]:
    """For each axis its size, and which of its positions (size,) belong to groups that grow."""
    positions: dict[tuple[str, str], list[Tensor]] = {}
    moved: dict[tuple[str, str], list[Tensor]] = {}
    for group in (*graph.groups, *graph.frozen):
        for member in group.members:
            key = (member.layer, member.axis)
            positions.setdefault(key, []).append(member.index.reshape(-1))
            if group in grown:
                moved.setdefault(key, []).append(member.index.reshape(-1))
    found = {}
    for key, parts in positions.items():
        size = int(torch.cat(parts).max()) + 1
        mask = torch.zeros(size, dtype=torch.bool)
        if key in moved:
            mask[torch.cat(moved[key])] = True
        found[key] = (size, mask)
    return found


def _places(
    parts: Sequence[nn.Module],
    graph: ChannelGraph,
    grown: Sequence[ChannelGroup],
    wide: ChannelGraph,
) -> Positions:
    """Where every network's positions stand in the wide one: channel c of network m is channel m *
    C + c of the wide group.

    Where the wide network counts channels in another way (a grouped convolution that is narrowed in
    one, and loses whole groups in the other), the networks' positions in an axis follow one
    another.
    """
    count = len(parts)
    known = {group.name: group for group in (*wide.groups, *wide.frozen)}
    sizes = {
        key: (size, count * int(moved.sum()) + int((~moved).sum()))
        for key, (size, moved) in _grown_positions(graph, grown).items()
    }
    found: Positions = {
        key: [torch.full((size,), -1) for _ in parts] for key, (size, _) in sizes.items()
    }
    for group in (*graph.groups, *graph.frozen):
        other, times = known.get(group.name), count if group in grown else 1
        if other is None or other.size != times * group.size:
            continue
        for twin in other.members:
            for member in group.members:
                if (member.layer, member.axis) != (twin.layer, twin.axis) or member.index.shape[
                    1
                ] != twin.index.shape[1]:
                    continue
                for number, places in enumerate(found[(member.layer, member.axis)]):
                    start = number * group.size if times > 1 else 0
                    places[member.index.reshape(-1)] = twin.index[
                        start : start + group.size
                    ].reshape(-1)
    for key, layout in found.items():
        _fill(layout, sizes[key][1])
    return found


def _fill(layout: list[Tensor], size: int) -> None:
    """Give the positions that have no place yet (-1) those of the wide axis of `size` that are
    free, network after network. In place.
    """
    taken = torch.zeros(size, dtype=torch.bool)
    taken[torch.cat([places[places >= 0] for places in layout])] = True
    free = (~taken).nonzero()[:, 0]
    open_ = [places < 0 for places in layout]
    if len(free) == sum(int(mask.sum()) for mask in open_):
        for places, mask, part in zip(
            layout,
            open_,
            free.chunk(len(layout)) if len(free) else [free] * len(layout),
            strict=True,
        ):
            places[mask] = part


def _join(parts: Sequence[nn.Module], places: Positions, *, on_meta: bool) -> nn.Module:
    """The network whose layers hold those of all parts at their places."""
    models = [meta_copy(part) for part in parts] if on_meta else list(parts)
    changed: dict[str, Cut] = {}
    for name in dict.fromkeys(layer for layer, _ in places):
        positions = [
            {axis: per[number] for (layer, axis), per in places.items() if layer == name}
            for number in range(len(parts))
        ]
        sizes = {
            axis: int(torch.cat([p[axis] for p in positions]).max()) + 1 for axis in positions[0]
        }
        found = [find(model, name) for model in models]
        modules = [layer for layer in found if isinstance(layer, nn.Module)]
        tensors = [layer for layer in found if isinstance(layer, Tensor)]
        try:
            changed[name] = (
                layers.joined(modules, _with_shares(positions), sizes)
                if modules
                else _joined_tensor(tensors, positions, sizes)
            )
        except EdgecompressError as error:
            raise UsageError(
                f"{type(parts[0]).__name__} cannot be stacked at '{name}': {error}"
            ) from error
    return rebuilt(models[0], changed)


def _with_shares(positions: list[dict[str, Tensor]]) -> list[Placed]:
    """Outputs that every network writes get a share of 1 / N from each."""
    if "out" not in positions[0]:
        return [Placed(p, torch.ones(1)) for p in positions]
    written = torch.cat([p["out"] for p in positions]).bincount().double()
    return [Placed(p, 1 / written[p["out"]]) for p in positions]


def _joined_tensor(
    tensors: Sequence[Tensor], positions: list[dict[str, Tensor]], sizes: dict[str, int]
) -> Cut:
    """A bare parameter or buffer: each network's values at their places. Values that several share
    must be equal.
    """
    shape = [sizes.get(f"dim{dim}", size) for dim, size in enumerate(tensors[0].shape)]
    wide = tensors[0].new_zeros(shape)
    for tensor, where in zip(tensors, positions, strict=True):
        index = [
            where.get(f"dim{dim}", torch.arange(size)) for dim, size in enumerate(tensor.shape)
        ]
        grid = torch.meshgrid(*(i.to(wide.device) for i in index), indexing="ij")
        wide[grid] = tensor.detach()
    return Cut({"": wide}, {})


@torch.no_grad()
def _difference(
    wide: nn.Module, parts: Sequence[nn.Module], example: Tensor, *, side_by_side: bool
) -> float:
    """Largest difference from what the parts give, relative to their largest output, on random
    inputs.
    """
    drawn = torch.randn(
        (3, *example.shape[1:]), generator=torch.Generator().manual_seed(0), dtype=torch.float64
    ).to(example.dtype)
    outputs = [part(drawn) for part in parts]
    wanted = torch.cat(outputs, 1) if side_by_side else torch.stack(outputs).mean(0)
    found = wide.eval()(drawn)
    if found.shape != wanted.shape:
        return float("inf")
    return float((found - wanted).abs().max() / max(1.0, float(wanted.abs().max())))


def _allowed(example: Tensor) -> float:
    return TOLERANCE.get(example.dtype, 1e-2)


def _checked(
    wide: nn.Module, parts: Sequence[nn.Module], example: Tensor, *, side_by_side: bool
) -> nn.Module:
    difference = _difference(wide, parts, example, side_by_side=side_by_side)
    if difference <= _allowed(example):
        return wide
    raise UsageError(
        f"{type(parts[0]).__name__} cannot be stacked: the wide network differs from its "
        f"parts by {difference:g} (an operation depends on "
        "the number of channels, or acts across the outputs)"
    )
