"""Constant and unread channels are dropped exactly where that changes no output."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune

from edgecompress.core import trace
from edgecompress.core.constants import drop_constant_channels
from tests.networks import EXAMPLE, NARROW, graph_of, narrow

SEEDS = st.integers(0, 2**20)


def images(seed: int) -> torch.Tensor:
    return torch.randn(
        3, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )


def same(left: nn.Module, right: nn.Module, seed: int = 0) -> None:
    with torch.no_grad():
        torch.testing.assert_close(left(images(seed)), right(images(seed)), atol=1e-9, rtol=0)


def silence(model: nn.Module, layer: str, channels: list[int]) -> None:
    """Zero every weight that makes these output channels."""
    with torch.no_grad():
        model.get_submodule(layer).weight[channels] = 0


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("vgg16", "features.2"),
        ("vgg16", "classifier.0"),
        ("vgg16_bn", "features.0"),
        ("lenet5", "features.3"),
        ("resnet20", "layers.0.conv1"),
        ("densenet121", "features.denseblock1.denselayer1.conv1"),
        ("mobilenet_v2", "features.2.conv.0.0"),
        ("student2", "features.0"),
    ],
)
@given(seed=SEEDS)
def test_constant_channels_go_only_where_that_is_exact(name: str, layer: str, seed: int) -> None:
    model = narrow(name, seed)
    silence(model, layer, [0, 2])
    small, rows = drop_constant_channels(model, graph_of(name), EXAMPLE)
    same(small, model, seed)
    if (
        name != "mobilenet_v2"
    ):  # there a depthwise convolution makes a constant other than 0 differ at the borders
        assert sum(row.constant for row in rows) >= 2
    for row in rows:
        assert row.removed == row.constant or row.reason


def test_a_constant_before_a_zero_padded_convolution_stays_with_the_reason() -> None:
    model = (
        nn.Sequential(
            nn.Conv2d(3, 4, 1),
            nn.Sigmoid(),
            nn.Conv2d(4, 5, 3, padding=1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        .double()
        .eval()
    )
    silence(model, "0", [1])
    small, (row,) = drop_constant_channels(model, trace(model, EXAMPLE), EXAMPLE)
    assert (row.constant, row.removed) == (1, 0)
    assert "zero-padded" in row.reason
    same(small, model)


def test_the_same_constant_goes_without_padding_and_a_bias_is_made_for_it() -> None:
    model = (
        nn.Sequential(
            nn.Conv2d(3, 4, 1),
            nn.Sigmoid(),
            nn.Conv2d(4, 5, 3, bias=False),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        .double()
        .eval()
    )
    silence(model, "0", [1])
    small, (row,) = drop_constant_channels(model, trace(model, EXAMPLE), EXAMPLE)
    assert row.removed == 1
    assert small[0].out_channels == 3
    same(small, model)


def test_weights_that_sum_to_zero_are_not_zero() -> None:
    model = narrow("vgg16", 0)
    with torch.no_grad():
        weight = model.features[0].weight
        weight[0] = 0
        weight[0, 0, 0, 0], weight[0, 0, 0, 1] = 1.0, -1.0
    _, rows = drop_constant_channels(model, graph_of("vgg16"), EXAMPLE)
    assert all(row.group != "features.0" for row in rows)


def test_a_whole_constant_group_keeps_one_channel() -> None:
    model = narrow("vgg16", 0)
    silence(model, "classifier.0", list(range(12)))
    small, rows = drop_constant_channels(model, graph_of("vgg16"), EXAMPLE)
    assert small.get_submodule("classifier.0").out_features >= 1
    assert any("last channel" in row.reason for row in rows)
    same(small, model)


@pytest.mark.parametrize("name", NARROW)
@given(seed=SEEDS, share=st.floats(0.1, 0.7))
def test_a_network_zeroed_anywhere_is_shrunk_exactly(name: str, seed: int, share: float) -> None:
    """Random output channels zeroed in every layer (weights; for half of them the bias and the
    BatchNorm scale too).
    """
    model = narrow(name, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if (
                isinstance(module, (nn.Conv2d, nn.Linear))
                and module is not list(model.modules())[-1]
            ):
                gone = torch.rand(module.weight.shape[0], generator=generator) < share
                module.weight[gone] = 0
                if module.bias is not None:
                    module.bias[gone & (torch.rand(len(gone), generator=generator) < 0.5)] = 0
            elif isinstance(module, nn.BatchNorm2d):
                module.weight[torch.rand(module.num_features, generator=generator) < share / 2] = 0
    small, rows = drop_constant_channels(model, graph_of(name), EXAMPLE)
    same(small, model, seed)
    assert all(row.removed <= row.constant <= row.size for row in rows)
    assert all(row.removed == row.constant or row.reason for row in rows)


def test_a_channel_that_nobody_reads_goes_and_so_does_what_fed_it_alone() -> None:
    model = narrow("vgg16", 3)
    with torch.no_grad():
        model.features[5].weight[:, 2] = (
            0  # nobody reads channel 2 of features.2, which alone reads channel 1 of features.0
        )
        model.features[2].weight[:, 1] = 0
        model.features[2].weight[2, 1] = 1.0
    small, rows = drop_constant_channels(model, graph_of("vgg16"), EXAMPLE)
    same(small, model, 3)
    assert small.features[2].out_channels == model.features[2].out_channels - 1
    assert small.features[0].out_channels == model.features[0].out_channels - 1, (
        "unread only once its reader is gone"
    )
    assert {row.group: row.unread for row in rows} == {"features.2": 1, "features.0": 1}


def test_a_network_pruned_by_torch_is_shrunk_and_left_as_it_was() -> None:
    """torch.nn.utils.prune: masks and hooks; the copy has neither, the argument keeps both."""
    model = narrow("vgg16", 4)
    for layer, bias in (("features.2", True), ("classifier.0", False)):
        prune.ln_structured(model.get_submodule(layer), "weight", 0.5, 1, 0)
        if bias:
            prune.l1_unstructured(model.get_submodule(layer), "bias", 0.25)
    small, rows = drop_constant_channels(model, trace(model, EXAMPLE), EXAMPLE)
    same(small, model, 4)
    assert small.get_submodule("classifier.0").out_features == 6
    assert next(row for row in rows if row.group == "classifier.0").removed == 6
    assert not any(key.endswith(("_mask", "_orig")) for key in small.state_dict())
    assert any(key.endswith("_mask") for key in model.state_dict())
