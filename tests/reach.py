"""The classification CNNs of torchvision, what stops those that cannot be cut, and the check of the
laws on a complete network.
"""

from __future__ import annotations

from collections import Counter

import torch

from edgecompress.core import ChannelGraph, layers, masked, shrink, trace
from edgecompress.models import ModelSource, build
from edgecompress.models.vision import torchvision
from tests.networks import random_keep

NOT_CNNS = ("vit_", "swin_", "maxvit")
"""Attention, no CNN."""

ONE_OF_EACH = [
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "efficientnet_v2_s",
    "googlenet",
    "inception_v3",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "regnet_x_400mf",
    "regnet_y_400mf",
    "resnet18",
    "resnet50",
    "resnext50_32x4d",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
]


def classification_cnns() -> list[str]:
    """Every classification network of torchvision that is a CNN."""
    models = torchvision().models
    return [name for name in models.list_models(module=models) if not name.startswith(NOT_CNNS)]


def side(name: str) -> int:
    """Pixels of the smallest input used here."""
    return 96 if name == "inception_v3" else 64


def network(name: str, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.nn.Module:
    """A torchvision network with random weights and BatchNorm statistics, in eval mode."""
    torch.manual_seed(seed)
    model = build(ModelSource(name, 10, (3, side(name), side(name)))).to(dtype).eval()
    for module in model.modules():
        if isinstance(module, layers.BatchNorm):
            torch.nn.init.uniform_(module.weight, 0.7, 1.3)
            torch.nn.init.normal_(module.bias, 0.0, 0.2)
            module.running_mean.normal_(0.0, 0.1)
            module.running_var.uniform_(0.7, 1.3)
    return model


def check_law_1(model: torch.nn.Module, graph: ChannelGraph) -> None:
    """Every position of every axis of every layer is in exactly one group."""
    owners: Counter[tuple[str, str, int]] = Counter()
    for group in (*graph.groups, *graph.frozen):
        for member in group.members:
            owners.update(
                (member.layer, member.axis, position)
                for position in member.index.reshape(-1).tolist()
            )
    assert set(owners.values()) == {1}
    for layer, module in model.named_modules():
        for axis in layers.axes(module):
            assert sum(
                owners[(layer, axis, p)] for p in range(layers.axis_size(module, axis))
            ) == layers.axis_size(module, axis)


def law_3_difference(
    model: torch.nn.Module, graph: ChannelGraph, example: torch.Tensor, seed: int, share: float
) -> tuple[float, float]:
    """(largest difference between the masked and the shrunk network, largest output) at random
    keeps; the shrunk one is smaller.
    """
    keep = random_keep(graph.groups, seed, share)
    with torch.no_grad():
        small = shrink(model, keep)
        expected = masked(model, keep)(example)
        difference = float((small(example) - expected).abs().max())
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    return difference, float(expected.abs().max())


def traced(
    name: str, dtype: torch.dtype = torch.float64
) -> tuple[torch.nn.Module, ChannelGraph, torch.Tensor]:
    """A network, its graph, and random images for it."""
    model = network(name, dtype=dtype)
    example = torch.randn(
        2, 3, side(name), side(name), dtype=dtype, generator=torch.Generator().manual_seed(1)
    )
    return model, trace(model, example), example
