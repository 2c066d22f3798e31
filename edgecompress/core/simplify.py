"""Lossless rewrites: the same function with fewer numbers. Each returns a new model of the same
class.

    fold_batchnorm   Conv/Linear followed by its BatchNorm becomes one layer (the BatchNorm turns
                     into `nn.Identity`)
    fold_pool        an adaptive average pool that enlarges its input is multiplied into the Linear
                     that reads it
    unfold_pool      the inverse: the least-norm Linear of the original size that computes the same

`fold_pool` is exact only for the traced input size, `FoldedPool.input_shape`.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from edgecompress.core.concrete import Traced, concrete_trace
from edgecompress.core.layers import BatchNorm
from edgecompress.errors import UsageError


@dataclass(frozen=True)
class FoldedPool:
    """A pool from (h, w) to (H, W) that can be multiplied into the layer `linear`, which then reads
    C * h * w values instead of C * H * W.
    """

    pool: str
    linear: str
    channels: int
    pooled: tuple[int, int]
    """What the pool writes, (H, W)."""
    read: tuple[int, int]
    """What the pool reads, (h, w), for inputs of `input_shape`."""
    input_shape: tuple[int, ...]

    @property
    def parameters_removed_per_output(self) -> int:
        """Weights saved for each output of the Linear."""
        return self.channels * (self.pooled[0] * self.pooled[1] - self.read[0] * self.read[1])


def _single_calls(graph: fx.Graph) -> dict[str, fx.Node]:
    """The one node that calls each submodule; submodules called more than once are absent."""
    calls: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            calls.setdefault(str(node.target), []).append(node)
    return {name: nodes[0] for name, nodes in calls.items() if len(nodes) == 1}


def fold_batchnorm(model: nn.Module, example: Tensor) -> nn.Module:
    """`model` in eval mode with every BatchNorm that directly follows a Conv or Linear folded into
    it; `example` (N, C, ...) is an input.

    y = gamma (W x + b - mean) / sqrt(var + eps) + beta, so W' = s W and b' = s (b - mean) + beta
    with s = gamma / sqrt(var + eps) (Jacob et al. 2018, section 3.2). Computed in float64. A layer
    whose output is read by others too is left alone, and so is a network that cannot be traced.
    """
    folded = copy.deepcopy(model).eval()
    try:
        calls = _single_calls(concrete_trace(model, example).graph)
    except UsageError:
        return folded
    for name, node in calls.items():
        norm = folded.get_submodule(name)
        if not isinstance(norm, BatchNorm) or norm.running_mean is None or norm.running_var is None:
            continue
        layer = _layer_before(node, calls, folded)
        if layer is not None:
            _fold_pair(layer, norm)
            parent, _, child = name.rpartition(".")
            setattr(folded.get_submodule(parent), child, nn.Identity())
    return folded


def _layer_before(node: fx.Node, calls: dict[str, fx.Node], model: nn.Module) -> nn.Module | None:
    """The Conv or Linear of `model` whose output only `node` reads, else None."""
    source = node.args[0]
    if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) != 1:
        return None
    name = str(source.target)
    if calls.get(name) is not source:
        return None
    layer = model.get_submodule(name)
    return layer if isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)) else None


def _fold_pair(layer: nn.Module, norm: BatchNorm) -> None:
    """Multiply `norm` into the weight and bias of `layer`, in place."""
    weight = layer.get_parameter("weight")
    mean, var = (
        t.detach().double() for t in (norm.running_mean, norm.running_var) if t is not None
    )
    gamma = torch.ones_like(mean) if norm.weight is None else norm.weight.detach().double()
    beta = torch.zeros_like(mean) if norm.bias is None else norm.bias.detach().double()
    scale = gamma / torch.sqrt(var + norm.eps)
    old_bias = getattr(layer, "bias", None)
    bias = torch.zeros_like(mean) if old_bias is None else old_bias.detach().double()
    scaled = weight.detach().double() * scale.reshape(-1, *[1] * (weight.dim() - 1))
    layer.register_parameter("weight", nn.Parameter(scaled.to(weight.dtype)))
    layer.register_parameter("bias", nn.Parameter((scale * (bias - mean) + beta).to(weight.dtype)))


def find_pools(model: nn.Module, example: Tensor) -> list[FoldedPool]:
    """Adaptive average pools that enlarge their input and are read by one Linear through a flatten,
    for inputs like `example` (N, C, H, W); none in a network that cannot be traced.
    """
    try:
        traced = concrete_trace(model, example)
    except UsageError:
        return []
    calls = _single_calls(traced.graph)
    input_shape = tuple(example.shape[1:])
    pools = [_pool(traced, name, node, calls, input_shape) for name, node in calls.items()]
    return [pool for pool in pools if pool is not None]


def _pool(
    traced: Traced,
    name: str,
    node: fx.Node,
    calls: dict[str, fx.Node],
    input_shape: tuple[int, ...],
) -> FoldedPool | None:
    """The pool called `name` when it can be folded into the Linear behind it, else None."""
    if not isinstance(traced.root.get_submodule(name), nn.AdaptiveAvgPool2d):
        return None
    linear = _linear_behind(traced, node)
    read, pooled = _shape(traced, node.args[0]), _shape(traced, node)
    if linear is None or linear not in calls or len(read) != 4:
        return None
    (h, w), (big_h, big_w) = read[2:], pooled[2:]
    if big_h < h or big_w < w or (big_h, big_w) == (h, w):
        return None
    return FoldedPool(name, linear, read[1], (big_h, big_w), (h, w), input_shape)


def _shape(traced: Traced, node: object) -> tuple[int, ...]:
    """The shape of a node's value; empty where it is no tensor."""
    value = traced.values.get(node) if isinstance(node, fx.Node) else None
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def _linear_behind(traced: Traced, node: fx.Node) -> str | None:
    """Name of the Linear that alone reads `node`, through a flatten and layers that do nothing in
    eval mode.
    """
    while len(node.users) == 1:
        node = next(iter(node.users))
        if node.op == "call_module":
            module = traced.root.get_submodule(str(node.target))
            if isinstance(module, nn.Linear):
                return str(node.target)
            if not isinstance(module, (nn.Flatten, nn.Dropout, nn.Dropout2d, nn.Identity)):
                return None
        elif node.target not in (torch.flatten, "flatten", F.dropout):
            return None
    return None


def pool_matrix(read: int, pooled: int) -> Tensor:
    """The matrix (pooled, read), float64, of one-dimensional adaptive average pooling from `read`
    to `pooled` values.
    """
    identity = torch.eye(read, dtype=torch.float64)
    return F.adaptive_avg_pool1d(identity.unsqueeze(0), pooled)[0].T.contiguous()


def _resize_linear(
    model: nn.Module, fold: FoldedPool, rows: Tensor, columns: Tensor, output: tuple[int, int]
) -> nn.Module:
    """`model` with the Linear of `fold` multiplied by `rows` and `columns` along its two map axes,
    and its pool set to `output`.

    A few channels are computed at a time, so that the float64 copies stay small next to the weight.
    """
    linear = model.get_submodule(fold.linear)
    weight = linear.get_parameter("weight")
    side = (rows.shape[0], columns.shape[0])
    maps = weight.detach().reshape(weight.shape[0], fold.channels, *side)
    channels_at_once = 2**22 // (weight.shape[0] * side[0] * side[1]) + 1
    parts = [
        torch.einsum("ochw,hi,wj->ocij", part.double(), rows, columns).to(weight.dtype)
        for part in maps.split(channels_at_once, dim=1)
    ]
    resized = torch.cat(parts, 1).flatten(1)
    new = nn.Parameter(resized, weight.requires_grad)
    result = copy.deepcopy(model, {id(weight): new})
    result.get_submodule(fold.linear).in_features = new.shape[1]  # type: ignore[assignment]
    result.get_submodule(fold.pool).output_size = output  # type: ignore[assignment]
    return result


def fold_pool(model: nn.Module, fold: FoldedPool) -> nn.Module:
    """`model` with one enlarging pool multiplied into its Linear. Exact for inputs of
    `fold.input_shape` only.

    An adaptive average pool is linear: Linear(pool(x)) = (W P) x, with P the Kronecker product of
    two `pool_matrix`.
    """
    rows, columns = (pool_matrix(r, p) for r, p in zip(fold.read, fold.pooled, strict=True))
    return _resize_linear(model, fold, rows, columns, fold.read)


def unfold_pool(model: nn.Module, fold: FoldedPool) -> nn.Module:
    """The inverse of `fold_pool`: a Linear of the original size, W P^+ with P^+ the pseudo-inverse,
    which computes the same.
    """
    rows, columns = (
        torch.linalg.pinv(pool_matrix(r, p)) for r, p in zip(fold.read, fold.pooled, strict=True)
    )
    return _resize_linear(model, fold, rows, columns, fold.pooled)
