"""torchvision's import, and its VGG16 without biases."""

from __future__ import annotations

import pytest
from torch import nn

from edgecompress.errors import UsageError
from edgecompress.models.vision import torchvision, vgg16_nobias


def test_vgg16_without_biases_has_the_weights_of_vgg16() -> None:
    model = vgg16_nobias(num_classes=7)
    reference = torchvision().models.vgg16(weights=None, num_classes=7)
    assert type(model) is type(reference)
    assert {name: p.shape for name, p in model.named_parameters()} == {
        name: p.shape for name, p in reference.named_parameters() if name.endswith("weight")
    }
    assert all(m.bias is None for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear)))


def test_vgg16_reads_rgb_only() -> None:
    with pytest.raises(UsageError, match=r"reads RGB, the data has 1 channel\(s\)"):
        vgg16_nobias(in_channels=1)
