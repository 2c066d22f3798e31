"""Importance: a function from a group to one score a channel, higher = keep. What is scored is what
`masked` would remove.

l1, l2   magnitude of what the consumers of a channel multiply it by, and of what makes it (Li et
al. 2017)
bn       |gamma| of the BatchNorm that the channel goes through (Liu et al. 2017)
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
from edgecompress.train.fit import Loss

CRITERIA = ("l1", "l2", "bn", "taylor", "random")
Scores = dict[ChannelGroup, Tensor]


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
        total, count = torch.zeros(group.size, dtype=torch.float64), 0
        for member in group.members:
            if member.layer not in sums:
                continue
            rows = sums[member.layer][member.axis]
            total += rows[member.index].sum(1)
            count += (
                model.get_submodule(member.layer).get_parameter("weight").numel()
                // len(rows)
                * member.index.shape[1]
            )
        values = (total / max(1, count)).pow(1 / order)
        scores[group] = values / values.mean().clamp_min(1e-30)
    return scores


def _power_sums(layer: nn.Module, order: int) -> dict[str, Tensor]:
    """Sum of |w|^order over the weights of each output (out,) and of each input (in,) of a mixing
    layer, float64.
    """
    weight = layer.get_parameter("weight").detach()
    powers = weight.abs() if order == 1 else weight.square()
    outputs = layers.output_sums(layer, powers)
    return {"out": outputs.double().cpu(), "in": layers.input_sums(layer, powers).double().cpu()}


def batchnorm_layers(model: nn.Module, graph: ChannelGraph) -> dict[ChannelGroup, list[Member]]:
    """The members of each group that are BatchNorms with a scale. Raises `UsageError` where a group
    has none.
    """
    found = {}
    for group in graph.groups:
        layers_of = [(m, _module(model, m.layer)) for m in group.members]
        found[group] = [
            m
            for m, layer in layers_of
            if isinstance(layer, layers.BatchNorm) and layer.weight is not None
        ]
        if not found[group]:
            raise UsageError(
                f"criterion 'bn' needs BatchNorm, group '{group.name}' has none: use l1, l2 "
                "or taylor"
            )
    return found


def batchnorm_scale(model: nn.Module, graph: ChannelGraph) -> Scores:
    """Mean |gamma| over the BatchNorms of each channel, divided by the group's mean. Raises
    `UsageError` where there is none.
    """
    scores = {}
    for group, members in batchnorm_layers(model, graph).items():
        scales = [
            (m, model.get_submodule(m.layer).get_parameter("weight").detach()) for m in members
        ]
        values = torch.stack(
            [scale.abs().double().cpu()[m.index].mean(1) for m, scale in scales]
        ).mean(0)
        scores[group] = values / values.mean().clamp_min(1e-30)
    return scores


def taylor(model: nn.Module, graph: ChannelGraph, loss: Loss, batches: Iterable[Batch]) -> Scores:
    """Mean over batches of the squared derivative of the loss by a gate on each channel, read off
    the consumers' weights.

    A gate that multiplies a consumer's input by g has dL/dg = sum of w * dL/dw over the weights
    that read the channel. The model is used in eval mode; its weights, its mode and its gradients
    are as before.
    """
    was_training = model.training
    model.eval()
    scores = {g: torch.zeros(g.size, dtype=torch.float64) for g in graph.groups}
    count = 0
    for batch in batches:
        model.zero_grad(set_to_none=True)
        with safe_convolutions():
            value = loss(model(batch.images), batch)
        value.backward()
        with torch.no_grad():
            for group in graph.groups:
                scores[group] += _gate_gradient(model, group) ** 2
        count += 1
    model.zero_grad(set_to_none=True)
    model.train(was_training)
    return {group: values / max(1, count) for group, values in scores.items()}


def _gate_gradient(model: nn.Module, group: ChannelGroup) -> Tensor:
    total = torch.zeros(group.size, dtype=torch.float64)
    for member in consumers(model, group):
        layer = model.get_submodule(member.layer)
        weight = layer.get_parameter("weight")
        if weight.grad is None:
            continue
        by_position = layers.input_sums(layer, weight.detach() * weight.grad)
        total += by_position.double().cpu()[member.index].sum(1)
    return total


def random(graph: ChannelGraph, seed: int) -> Scores:
    """Uniform scores in 0..1."""
    generator = torch.Generator().manual_seed(seed)
    return {g: torch.rand(g.size, generator=generator, dtype=torch.float64) for g in graph.groups}


def _module(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None
