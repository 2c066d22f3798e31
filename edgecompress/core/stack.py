"""One wide network that equals the average of several of the same kind: `stack([a, b])(x) == (a(x)
+ b(x)) / 2` (law 4).

Where one network has a channel group of C channels, the wide one has N * C. Which position goes
where is read off two traces, that of one network and that of its wide form (`core/placement`), so
flattened maps, concats and residual streams need no code of their own. The layers are joined in
`core/widen`, the outputs handled in `core/heads`. Every result is compared with its parts before it
is returned.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from edgecompress.core.graph import ChannelGraph, ChannelGroup, trace
from edgecompress.core.heads import Averaged, with_equal_heads, with_one_head, without_padding
from edgecompress.core.labels import INPUT, OUTPUT
from edgecompress.core.placement import final, provisional
from edgecompress.core.widen import wide_network
from edgecompress.errors import UnknownChoiceError, UsageError

__all__ = ["Averaged", "check_alike", "check_stackable", "stack", "with_one_head"]

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}

Combine = Callable[[Sequence[Tensor]], Tensor]
"""The outputs (N, K, ...) of all parts to the outputs that the wide network must have."""


def stack(models: Sequence[nn.Module], example: Tensor, *, heads: str = "average") -> nn.Module:
    """The wide network of `models`, which are of one kind and size, for inputs like `example` (N,
    ...). The parts are not changed.

    `heads` is `average`: the outputs are averaged, inside the last layer where everything after it
    is affine, else behind it (`Averaged`); or `separate`: the outputs lie side by side, (N, sum of
    K), and each network may have its own number K. The result is in eval mode.

    Raises `UsageError` for parts that differ, naming every tensor, and for a network with channels
    that must stay as they are.
    """
    if heads not in ("average", "separate"):
        raise UnknownChoiceError("heads", heads, ("average", "separate"))
    if heads == "average":
        return _averaged(_parts(models), example)
    padded, outputs = with_equal_heads(models, example)
    return _separate(_parts(padded), outputs, example)


def check_stackable(
    models: Sequence[nn.Module], example: Tensor, *, heads: str = "average"
) -> None:
    """Raises `UsageError`, as `stack` would, for networks that differ or cannot be made wider, as
    far as that is known without their values. `example` (N, ...) is an input.
    """
    parts = with_equal_heads(models, example)[0] if heads == "separate" else list(models)
    check_alike(parts)
    graph = _free_graph(parts[0], example)
    grown = _grown(graph, widen_output=True)
    wide_network(parts, provisional(len(parts), graph, grown), on_meta=True)


def check_alike(models: Sequence[nn.Module]) -> None:
    """Raises `UsageError` naming every tensor in which a network differs from the first in name or
    shape.
    """
    if not models:
        raise UsageError("no network to stack: give at least one")
    for number, model in enumerate(models[1:], start=2):
        differences = _differences(models[0], model)
        same_class = type(model) is type(models[0])
        if not differences and same_class:
            continue
        names = f" ({type(models[0]).__name__} / {type(model).__name__})"
        raise UsageError(
            f"networks 1 and {number} differ{'' if same_class else names} in "
            f"{len(differences)} tensor(s): {', '.join(differences)}; distil one into the other "
            "instead: edgecompress distill"
        )


def _differences(first: nn.Module, second: nn.Module) -> list[str]:
    """Tensors that differ in name or shape, as `name shape / shape`."""
    left = {name: tuple(tensor.shape) for name, tensor in first.state_dict().items()}
    right = {name: tuple(tensor.shape) for name, tensor in second.state_dict().items()}
    return [
        f"{name} {left.get(name, 'absent')} / {right.get(name, 'absent')}"
        for name in {**left, **right}
        if left.get(name) != right.get(name)
    ]


def _parts(models: Sequence[nn.Module]) -> list[nn.Module]:
    """Copies in eval mode; raises `UsageError` unless they are alike."""
    check_alike(models)
    return [copy.deepcopy(model).eval() for model in models]


def _averaged(parts: Sequence[nn.Module], example: Tensor) -> nn.Module:
    """The wide network whose outputs are the mean of the parts'."""
    if len(parts) == 1:
        return parts[0]
    graph = _free_graph(parts[0], example)

    # a last layer that writes the mean serves only where all that follows it is affine: then the
    # comparison holds; a BatchNorm of the outputs cannot write a sum at all
    with contextlib.suppress(UsageError):
        wide = _stacked(parts, graph, example, widen_output=False)
        if _difference(wide, _mean, parts, example) <= _allowed(example):
            return wide

    wide = Averaged(_stacked(parts, graph, example, widen_output=True), len(parts))
    return _checked(wide, _mean, parts, example)


def _separate(parts: Sequence[nn.Module], outputs: Sequence[int], example: Tensor) -> nn.Module:
    """The wide network whose outputs are those of the parts, side by side; part i has `outputs[i]`
    of its own.
    """
    if len(parts) == 1:
        return parts[0]
    graph = _free_graph(parts[0], example)
    wide = _stacked(parts, graph, example, widen_output=True)
    return without_padding(_checked(wide, _concatenated, parts, example), outputs, example)


def _free_graph(model: nn.Module, example: Tensor) -> ChannelGraph:
    """The trace of `model`; raises `UsageError` when more than its input and output is frozen."""
    graph = trace(model, example)
    for group in graph.frozen:
        if group.frozen not in (INPUT, OUTPUT):
            raise UsageError(
                f"{type(model).__name__} cannot be stacked: group '{group.name}' must stay "
                f"as it is ({group.frozen})"
            )
    return graph


def _grown(graph: ChannelGraph, *, widen_output: bool) -> list[ChannelGroup]:
    """The groups that have N times as many channels in the wide network."""
    outputs = [group for group in graph.frozen if group.frozen == OUTPUT]
    return [*graph.groups, *(outputs if widen_output else [])]


def _stacked(
    parts: Sequence[nn.Module], graph: ChannelGraph, example: Tensor, *, widen_output: bool
) -> nn.Module:
    """The wide network; where `widen_output` is false its last layers write the mean of the parts'
    outputs.
    """
    grown = _grown(graph, widen_output=widen_output)
    shapes = wide_network(parts, provisional(len(parts), graph, grown), on_meta=True)
    placement = final(len(parts), graph, grown, trace(shapes, example))
    return wide_network(parts, placement, on_meta=False)


# -- Comparison with the parts


def _mean(outputs: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(outputs)).mean(0)


def _concatenated(outputs: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(outputs), 1)


def _checked(
    wide: nn.Module, combine: Combine, parts: Sequence[nn.Module], example: Tensor
) -> nn.Module:
    difference = _difference(wide, combine, parts, example)
    if difference <= _allowed(example):
        return wide
    raise UsageError(
        f"{type(parts[0]).__name__} cannot be stacked: the wide network differs from its "
        f"parts by {difference:g} (an operation depends on "
        "the number of channels, or acts across the outputs)"
    )


@torch.no_grad()
def _difference(
    wide: nn.Module, combine: Combine, parts: Sequence[nn.Module], example: Tensor
) -> float:
    """Largest difference from the combined outputs of the parts, relative to the largest of these,
    on random inputs.
    """
    drawn = torch.randn(
        (3, *example.shape[1:]), generator=torch.Generator().manual_seed(0), dtype=torch.float64
    ).to(example.dtype)
    expected = combine([part(drawn) for part in parts])
    actual: Tensor = wide.eval()(drawn)
    if actual.shape != expected.shape:
        return float("inf")
    scale = max(1.0, float(expected.abs().max()))
    return float((actual - expected).abs().max() / scale)


def _allowed(example: Tensor) -> float:
    return TOLERANCE.get(example.dtype, 1e-2)
