"""Networks to export, and the metadata of their files."""

from __future__ import annotations

import torch
from torch import nn

from edgecompress.core import shrink, trace
from edgecompress.data import Preprocess
from edgecompress.export.onnx import InputSpec
from edgecompress.models import ModelSource, build
from tests.networks import random_keep, short_mobilenet

SHAPE = (3, 32, 32)
EXAMPLE = torch.zeros(1, *SHAPE)
SPEC = InputSpec(SHAPE, Preprocess((0.5,) * 3, (0.25,) * 3), ("a", "b", "c", "d", "e"), "test data")


def network(name: str) -> nn.Module:
    """A pruned network of 5 classes whose BatchNorms have statistics."""
    torch.manual_seed(0)
    source = ModelSource(name, 5, SHAPE)
    model = short_mobilenet(5, 1.0) if name == "mobilenet_v2" else build(source)
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    graph = trace(model, EXAMPLE)
    return shrink(model, random_keep(graph.groups, 0, 0.4))
