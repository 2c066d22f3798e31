"""Which axis of which tensor: cuts, permutations and per-channel views of every kind of layer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edgecompress.core import layers
from edgecompress.errors import EdgecompressError

MIXING: dict[str, tuple[nn.Module, Tensor]] = {
    "linear": (nn.Linear(6, 4), torch.rand(2, 6)),
    "conv1d": (nn.Conv1d(6, 4, 3), torch.rand(2, 6, 5)),
    "conv2d": (nn.Conv2d(6, 4, 3), torch.rand(2, 6, 5, 5)),
    "grouped": (nn.Conv2d(6, 4, 3, groups=2), torch.rand(2, 6, 5, 5)),
    "depthwise": (nn.Conv2d(6, 6, 3, groups=6), torch.rand(2, 6, 5, 5)),
    "transposed": (nn.ConvTranspose2d(6, 4, 3), torch.rand(2, 6, 5, 5)),
    "grouped transposed": (nn.ConvTranspose2d(6, 4, 3, groups=2), torch.rand(2, 6, 5, 5)),
}
for _layer, _ in MIXING.values():
    _layer.double()


def inputs(name: str) -> Tensor:
    return MIXING[name][1].double()


def with_weight(layer: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    return torch.func.functional_call(layer, {"weight": weight}, (x,))


@pytest.mark.parametrize("name", MIXING)
def test_scaling_inputs_is_scaling_what_the_layer_reads(name: str) -> None:
    layer, x = MIXING[name][0], inputs(name)
    factor = torch.rand(layers.axis_size(layer, "in"), dtype=torch.float64)
    scaled = x * factor.reshape(1, -1, *[1] * (x.dim() - 2))
    actual = with_weight(layer, x, layers.scale_inputs(layer, factor))
    torch.testing.assert_close(actual, layer(scaled))


@pytest.mark.parametrize("name", MIXING)
def test_scaling_outputs_is_scaling_what_the_layer_writes(name: str) -> None:
    layer, x = MIXING[name][0], inputs(name)
    factor = torch.rand(layers.axis_size(layer, "out"), dtype=torch.float64)
    shape = [1, -1, *[1] * (x.dim() - 2)]
    bias = layer.get_parameter("bias").reshape(shape)
    actual = with_weight(layer, x, layers.scale_outputs(layer, factor))
    torch.testing.assert_close(actual - bias, (layer(x) - bias) * factor.reshape(shape))


@pytest.mark.parametrize("name", MIXING)
def test_sums_are_those_of_the_slices_of_an_axis(name: str) -> None:
    layer = MIXING[name][0]
    weight = layer.get_parameter("weight")
    for axis, sums in (("in", layers.input_sums), ("out", layers.output_sums)):
        rows = dict(layers.axis_slices(layer, axis))["weight"]
        assert len(rows) == layers.axis_size(layer, axis)
        torch.testing.assert_close(sums(layer, weight), rows.flatten(1).sum(1))
    assert [n for n, _ in layers.axis_slices(layer, "out")] == ["weight", "bias"]
    assert [n for n, _ in layers.axis_slices(layer, "in")] == ["weight"]


@pytest.mark.parametrize("name", MIXING)
def test_unit_weights_count_the_weights(name: str) -> None:
    layer = MIXING[name][0]
    size_in, size_out = layers.axis_size(layer, "in"), layers.axis_size(layer, "out")
    pairs = size_out if layers.loses_whole_groups(layer) else size_in * size_out
    assert layers.unit_weights(layer) * pairs == layer.get_parameter("weight").numel()


@pytest.mark.parametrize("name", ["linear", "conv1d", "conv2d", "transposed"])
def test_a_cut_keeps_the_chosen_rows_and_columns(name: str) -> None:
    layer, x = MIXING[name][0], inputs(name)
    read = torch.tensor([True, False, True, True, False, True])
    written = torch.tensor([False, True, True, False])
    change = layers.cut(layer, {"in": read, "out": written})
    assert {k: v for k, v in change.attributes.items() if k != "groups"} in (
        {"in_features": 4, "out_features": 2},
        {"in_channels": 4, "out_channels": 2},
    )
    weight = layers.scale_inputs(layer, read.double())
    expected = with_weight(layer, x, weight)[:, written]
    small = type(layer)(4, 2, *([] if name == "linear" else [3])).double()
    small.load_state_dict(change.tensors)
    torch.testing.assert_close(small(x[:, read]), expected)


def test_a_grouped_convolution_loses_whole_groups_or_equal_positions() -> None:
    layer = nn.Conv2d(8, 8, 1, groups=2)
    narrowed = torch.tensor([1, 0, 1, 1, 1, 0, 1, 1]).bool()
    change = layers.cut(layer, {"in": narrowed, "out": narrowed})
    assert change.tensors["weight"].shape == (6, 3, 1, 1)
    assert change.attributes == {"in_channels": 6, "out_channels": 6, "groups": 2}
    first_group = torch.arange(8) < 4
    change = layers.cut(layer, {"in": first_group, "out": first_group})
    assert change.tensors["weight"].shape == (4, 4, 1, 1)
    assert change.attributes["groups"] == 1
    uneven = torch.arange(8) < 6
    with pytest.raises(EdgecompressError, match="2 groups of a convolution with unequal widths"):
        layers.cut(layer, {"in": uneven, "out": uneven})


@pytest.mark.parametrize(
    ("layer", "attributes"),
    [
        (nn.BatchNorm2d(6), {"num_features": 3}),
        (nn.InstanceNorm2d(6, affine=True), {"num_features": 3}),
        (nn.PReLU(6), {"num_parameters": 3}),
        (nn.GroupNorm(2, 6), {"num_channels": 3, "num_groups": 1}),
    ],
)
def test_channelwise_layers_are_cut(layer: nn.Module, attributes: dict[str, int]) -> None:
    assert layers.axes(layer) == ("through",)
    change = layers.cut(layer, {"through": torch.arange(6) < 3})
    assert change.attributes == attributes
    assert {tuple(tensor.shape) for tensor in change.tensors.values()} == {(3,)}
    assert set(change.tensors) == set(layers.channel_tensors(layer))


def test_a_bare_tensor_is_cut_along_its_axis() -> None:
    change = layers.cut(torch.arange(6).reshape(1, 3, 2), {"dim1": torch.tensor([1, 0, 1]).bool()})
    assert change.tensors[""].tolist() == [[[0, 1], [4, 5]]]


@pytest.mark.parametrize("name", ["linear", "conv2d", "transposed", "depthwise"])
def test_permuting_both_axes_permutes_what_is_read_and_written(name: str) -> None:
    layer, x = MIXING[name][0], inputs(name)
    generator = torch.Generator().manual_seed(0)
    read = torch.randperm(layers.axis_size(layer, "in"), generator=generator)
    written = torch.randperm(layers.axis_size(layer, "out"), generator=generator)
    if name == "depthwise":
        written = read
    tensors = layers.reordered(layer, {"in": read, "out": written})
    actual = torch.func.functional_call(layer, tensors, (x[:, read],))
    torch.testing.assert_close(actual, layer(x)[:, written])


def test_few_wide_groups_are_narrowed_and_many_narrow_ones_dropped() -> None:
    assert not layers.loses_whole_groups(nn.Conv2d(32, 32, 3, groups=2))
    assert layers.loses_whole_groups(nn.Conv2d(32, 32, 3, groups=32))
    assert layers.loses_whole_groups(nn.Conv2d(32, 64, 3, groups=8))
    assert not layers.loses_whole_groups(nn.Linear(4, 4))


def test_layers_without_channels_have_no_axes() -> None:
    assert layers.axes(nn.ReLU()) == ()
    with pytest.raises(EdgecompressError, match="ReLU has no axis 'in'"):
        layers.axis_size(nn.ReLU(), "in")
    with pytest.raises(EdgecompressError, match="BatchNorm2d does not mix channels"):
        layers.scale_inputs(nn.BatchNorm2d(4), torch.ones(4))
