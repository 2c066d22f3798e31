"""ResNets for 32x32 images."""

from __future__ import annotations

import torch

from edgecompress.models import ModelSource, build
from edgecompress.models.resnet import Block, CifarResNet

SHAPE = (3, 32, 32)


def test_resnet20_has_the_papers_size() -> None:
    assert sum(p.numel() for p in build(ModelSource("resnet20", 10, SHAPE)).parameters()) == 272_474


def test_resnet8_has_the_size_of_mlperf_tiny() -> None:
    assert sum(p.numel() for p in build(ModelSource("resnet8", 10, SHAPE)).parameters()) == 78_042


def test_stages_halve_the_map_but_the_first() -> None:
    model = CifarResNet((1, 1, 1), (4, 8, 12), num_classes=5, in_channels=1).eval()
    x = torch.zeros(2, 1, 32, 32)
    assert model(x).shape == (2, 5)
    assert model.layers(model.conv1(x)).shape == (2, 12, 8, 8)


def test_a_block_projects_only_where_shapes_differ() -> None:
    assert isinstance(Block(4, 4, 1).shortcut, torch.nn.Identity)
    assert Block(4, 8, 2)(torch.zeros(2, 4, 6, 6)).shape == (2, 8, 3, 3)
    assert not isinstance(Block(4, 4, 2).shortcut, torch.nn.Identity)
