"""Torchvision's classification CNNs at full width: the laws hold, and our groups are those of
Torch-Pruning, or finer.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgecompress.core import ChannelGraph, layers
from tests.reach import ONE_OF_EACH, check_law_1, classification_cnns, law_3_difference, traced


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_one_of_each_family(name: str) -> None:
    model, graph, example = traced(name)
    assert graph.groups, "nothing can be cut"
    check_law_1(model, graph)
    difference, largest = law_3_difference(model, graph, example, seed=1, share=0.6)
    assert difference <= 1e-9 * max(1.0, largest)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(classification_cnns()) - set(ONE_OF_EACH)))
def test_every_classification_cnn(name: str) -> None:
    model, graph, example = traced(name, torch.float32)
    assert graph.groups, "nothing can be cut"
    check_law_1(model, graph)
    difference, largest = law_3_difference(model, graph, example, seed=1, share=0.6)
    assert difference <= 1e-5 * max(1.0, largest)


Position = tuple[str, str, int]

GROUPED = ["regnet_x_400mf", "regnet_y_400mf", "resnext50_32x4d"]
"""Where one channel of a grouped convolution cannot go alone: Torch-Pruning's group names that
channel, the rest is left to its pruner; ours holds all that must go together.
"""

COMPARED = [
    "alexnet",
    "densenet121",
    "efficientnet_b0",
    "googlenet",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "resnet18",
    "resnet50",
    "squeezenet1_1",
    "vgg11_bn",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("vgg11", "wide_resnet50_2")),
]


def ours(model: nn.Module, graph: ChannelGraph) -> dict[Position, frozenset[Position]]:
    """For every output position of a mixing layer all positions that go with it."""
    together_with = {}
    for group in graph.groups:
        owned = [
            [(m.layer, m.axis, p) for m in group.members for p in m.index[c].tolist()]
            for c in range(group.size)
        ]
        for channel in owned:
            together = frozenset(p for p in channel if not _is_depthwise_input(model, p))
            together_with.update({p: together for p in channel if p[1] == "out"})
    return together_with


def _is_depthwise_input(model: nn.Module, position: Position) -> bool:
    module = model.get_submodule(position[0])
    return position[1] == "in" and getattr(module, "groups", 1) > 1


def theirs(
    model: nn.Module, example: torch.Tensor, roots: list[tuple[str, int]]
) -> dict[Position, frozenset[Position]]:
    """The same from Torch-Pruning's dependency graph, for the output positions `roots`."""
    import torch_pruning as tp

    known = tp.DependencyGraph().build_dependency(model, example_inputs=example)
    names = {module: name for name, module in model.named_modules()}
    together_with = {}
    for layer, position in roots:
        module = model.get_submodule(layer)
        cut = known.get_pruner_of_module(module).prune_out_channels
        together = set()
        for item in known.get_pruning_group(module, cut, idxs=[position]):
            target = item.dep.target.module
            name = names.get(target)
            if name is None or not layers.axes(target):
                continue
            axis = "out" if known.is_out_channel_pruning_fn(item.dep.handler) else "in"
            axis = axis if layers.is_mixing(target) else "through"
            together |= {(name, axis, int(i)) for i in item.idxs}
        together_with[(layer, "out", position)] = frozenset(
            p for p in together if not _is_depthwise_input(model, p)
        )
    return together_with


def both(
    name: str,
) -> tuple[dict[Position, frozenset[Position]], dict[Position, frozenset[Position]]]:
    """(ours, theirs) for the first and the last output channel of about twenty layers."""
    model, graph, example = traced(name, torch.float32)
    mine = ours(model, graph)
    last = {m.layer for f in graph.frozen for m in f.members}
    roots = [
        (n, p)
        for n, m in model.named_modules()
        if layers.is_mixing(m) and n not in last
        for p in (0, layers.axis_size(m, "out") - 1)
    ]
    roots = roots[:: max(1, len(roots) // 40)]
    reference = theirs(model, example, [r for r in roots if (r[0], "out", r[1]) in mine])
    assert len(reference) >= 5
    return {position: mine[position] for position in reference}, reference


@pytest.mark.parametrize("name", COMPARED)
def test_groups_are_those_of_torch_pruning(name: str) -> None:
    mine, reference = both(name)
    assert mine == reference


@pytest.mark.parametrize("name", GROUPED)
def test_groups_of_grouped_convolutions_hold_what_torch_pruning_leaves_to_its_pruner(
    name: str,
) -> None:
    mine, reference = both(name)
    assert all(reference[position] <= together for position, together in mine.items())
    assert any(reference[position] == together for position, together in mine.items())
    assert any(reference[position] < together for position, together in mine.items())
