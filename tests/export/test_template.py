"""Files of other widths from one export: what the exporter would have written, byte for byte."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgecompress.core import shrink, trace
from edgecompress.core.simplify import fold_batchnorm
from edgecompress.export.onnx import to_onnx
from edgecompress.export.template import Template
from edgecompress.models import ModelSource, build
from tests.networks import random_keep, short_mobilenet

SHAPE = (3, 32, 32)
EXAMPLE = torch.zeros(1, *SHAPE)


def cuts(name: str) -> tuple[nn.Module, nn.Module]:
    """One trained network (no two tensors equal), cut in two ways."""
    torch.manual_seed(0)
    model = (
        short_mobilenet(5, 0.5) if name == "mobilenet_v2" else build(ModelSource(name, 5, SHAPE))
    )
    for module in model.eval().modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            nn.init.uniform_(parameter, 0.5, 1.0)
    graph = trace(model, EXAMPLE)
    one, two = (shrink(model, random_keep(graph.groups, seed, 0.4)) for seed in (1, 2))
    return fold_batchnorm(one, EXAMPLE), fold_batchnorm(two, EXAMPLE)


@pytest.mark.parametrize("name", ["lenet5", "resnet20", "mobilenet_v2", "student1", "mlp"])
def test_a_filled_template_is_the_exported_file(name: str) -> None:
    first, second = cuts(name)
    template = Template.of(to_onnx(first, EXAMPLE), first)
    assert template is not None
    filled, exported = template.filled(second), to_onnx(second, EXAMPLE)
    assert filled.SerializeToString() == exported.SerializeToString()
    assert template.filled(first).SerializeToString() == template.proto.SerializeToString()


def test_merged_constants_make_no_template() -> None:
    """Biases that are all zero are one constant in the file; after a training they are not."""
    first, _ = cuts("resnet20")
    for module in first.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.zeros_(module.bias)
    assert Template.of(to_onnx(first, EXAMPLE), first) is None


def test_another_network_is_refused() -> None:
    first, _ = cuts("lenet5")
    template = Template.of(to_onnx(first, EXAMPLE), first)
    assert template is not None
    with pytest.raises(ValueError, match="not the same network"):
        template.filled(build(ModelSource("mlp", 5, SHAPE)))


class Own(nn.Module):
    """A convolution by the network's own code: no layer has its number of groups."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(4, 3, 3, 3))
        self.fc = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(nn.functional.conv2d(x, self.kernel).mean((2, 3)))  # type: ignore[no-any-return]


def test_a_convolution_without_a_layer_makes_no_template() -> None:
    network = Own().eval()
    assert Template.of(to_onnx(network, EXAMPLE), network) is None
