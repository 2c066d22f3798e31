"""Importance: one score per channel for each group, higher = keep. What is scored is what `masked`
would remove.

l1, l2   magnitude of the weights that produce a channel and that read it (Li et al. 2017)
bn       |gamma| of the BatchNorm that the channel passes through (Liu et al. 2017)
taylor   (dL / dg)^2 of a gate g = 1 on the consumers' input, mean over batches (Molchanov et al.
         2019)
random   uniform
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from edgecompress.core import ChannelGraph, ChannelGroup, Member, consumers, layers
from edgecompress.core.convolutions import safe_convolutions
from edgecompress.errors import UsageError
from edgecompress.train.batches import Batch
from edgecompress.train.losses import Loss
from edgecompress.train.modes import evaluating, outputs_of

CRITERIA = ("l1", "l2", "bn", "taylor", "random")
Scores = dict[ChannelGroup, Tensor]
"""For each group its channels' scores (C,), float64."""


def magnitude(model: nn.Module, graph: ChannelGraph, order: int) -> Scores:
    """Mean |w| (order 1) or root mean w^2 (order 2) over all mixing weights of each channel,
    divided by the group's mean.
    """
    sums = {
        name: _power_sums(layer, order)
        for name, layer in model.named_modules()
        if layers.is_mixing(layer)
    }
    scores = {}
    for group in graph.groups:
        total = torch.zeros(group.size, dtype=torch.float64)
        count = 0
        for member in group.members:
            if member.layer not in sums:
                continue
            by_position = sums[member.layer][member.axis]  # (in,) or (out,)
            weight = model.get_submodule(member.layer).get_parameter("weight")
            total += by_position[member.index].sum(1)
            count += weight.numel() // len(by_position) * member.index.shape[1]
        scores[group] = _relative((total / max(1, count)).pow(1 / order))
    return scores


def _power_sums(layer: nn.Module, order: int) -> dict[str, Tensor]:
    """Sum of |w|^order over the weights of each output (out,) and of each input (in,) of a mixing
    layer, float64.
    """
    weight = layer.get_parameter("weight").detach()
    powers = weight.abs() if order == 1 else weight.square()
    outputs = layers.output_sums(layer, powers)
    inputs = layers.input_sums(layer, powers)
    return {"out": outputs.double().cpu(), "in": inputs.double().cpu()}


def _relative(values: Tensor) -> Tensor:
    """`values` (C,) over their mean."""
    return values / values.mean().clamp_min(1e-30)


def batchnorm_layers(model: nn.Module, graph: ChannelGraph) -> dict[ChannelGroup, list[Member]]:
    """The members of each group that are BatchNorms with a scale. Raises `UsageError` where a group
    has none.
    """
    norms = {
        name
        for name, layer in model.named_modules(remove_duplicate=False)
        if isinstance(layer, layers.BatchNorm) and layer.weight is not None
    }
    members = {}
    for group in graph.groups:
        members[group] = [member for member in group.members if member.layer in norms]
        if not members[group]:
            raise UsageError(
                f"criterion 'bn' needs BatchNorm, group '{group.name}' has none: use l1, l2 "
                "or taylor"
            )
    return members


def batchnorm_scale(model: nn.Module, graph: ChannelGraph) -> Scores:
    """Mean |gamma| over the BatchNorms of each channel, divided by the group's mean. Raises
    `UsageError` where there is none.
    """
    scores = {}
    for group, members in batchnorm_layers(model, graph).items():
        scales = []
        for member in members:
            gamma = model.get_submodule(member.layer).get_parameter("weight").detach()
            scales.append(gamma.abs().double().cpu()[member.index].mean(1))  # (C,)
        scores[group] = _relative(torch.stack(scales).mean(0))
    return scores


def taylor(model: nn.Module, graph: ChannelGraph, loss: Loss, batches: Iterable[Batch]) -> Scores:
    """Mean over batches of the squared derivative of the loss by a gate on each channel, computed
    from the consumers' weights (Molchanov et al. 2019).

    A gate g that multiplies a consumer's input has dL/dg = sum of w * dL/dw over the weights that
    read the channel. The model is used in eval mode; its weights and mode are unchanged, its
    gradients are cleared.
    """
    scores = {g: torch.zeros(g.size, dtype=torch.float64) for g in graph.groups}
    count = 0
    with evaluating(model):
        for batch in batches:
            model.zero_grad(set_to_none=True)
            with safe_convolutions(batch.images.device):
                value = loss(outputs_of(model, batch.images), batch)  # (B, K) -> scalar
            value.backward()
            for group in graph.groups:
                scores[group] += _gate_gradient(model, group) ** 2
            count += 1
        model.zero_grad(set_to_none=True)
    return {group: values / max(1, count) for group, values in scores.items()}


@torch.no_grad()
def _gate_gradient(model: nn.Module, group: ChannelGroup) -> Tensor:
    """dL/dg (C,) of a gate on each channel of `group`, from the gradients that `model` holds."""
    total = torch.zeros(group.size, dtype=torch.float64)
    for member in consumers(model, group):
        layer = model.get_submodule(member.layer)
        weight = layer.get_parameter("weight")
        if weight.grad is None:
            continue
        by_position = layers.input_sums(layer, weight.detach() * weight.grad)  # (in,)
        total += by_position.double().cpu()[member.index].sum(1)
    return total


def random(graph: ChannelGraph, seed: int) -> Scores:
    """Uniform scores in 0..1."""
    generator = torch.Generator().manual_seed(seed)
    return {g: torch.rand(g.size, generator=generator, dtype=torch.float64) for g in graph.groups}
