"""One layer that holds those of several networks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgecompress.core.widen import Placed, wide_layer, wide_network
from edgecompress.errors import EdgecompressError, UsageError


def placed(share: float = 1.0, **positions: list[int]) -> Placed:
    tensors = {axis.rstrip("_"): torch.tensor(where) for axis, where in positions.items()}
    count = len(tensors.get("out", torch.empty(1)))
    return Placed(tensors, torch.full((count,), share))


def test_weights_between_networks_are_zero() -> None:
    one, two = nn.Linear(2, 1), nn.Linear(2, 1)
    change = wide_layer(
        [one, two],
        [placed(in_=[0, 1], out=[0]), placed(in_=[2, 3], out=[1])],
        {"in": 4, "out": 2},
    )
    weight = change.tensors["weight"]
    assert torch.equal(weight[:1, :2], one.weight)
    assert torch.equal(weight[1:, 2:], two.weight)
    assert not weight[:1, 2:].any()
    assert not weight[1:, :2].any()
    assert change.attributes == {"in_features": 4, "out_features": 2}


def test_outputs_that_all_networks_write_are_their_mean() -> None:
    one, two = nn.Conv2d(2, 3, 1), nn.Conv2d(2, 3, 1)
    change = wide_layer(
        [one, two],
        [placed(0.5, in_=[0, 1], out=[0, 1, 2]), placed(0.5, in_=[2, 3], out=[0, 1, 2])],
        {"in": 4, "out": 3},
    )
    torch.testing.assert_close(change.tensors["bias"], (one.bias + two.bias) / 2)
    torch.testing.assert_close(change.tensors["weight"][:, :2], one.weight / 2)


def test_grouped_and_channelwise_layers_must_lie_side_by_side() -> None:
    parts = [nn.Conv2d(2, 2, 1, groups=2) for _ in range(2)]
    side_by_side = [placed(in_=[0, 1], out=[0, 1]), placed(in_=[2, 3], out=[2, 3])]
    change = wide_layer(parts, side_by_side, {"in": 4, "out": 4})
    assert change.attributes == {"in_channels": 4, "out_channels": 4, "groups": 4}
    with pytest.raises(EdgecompressError, match="would not lie side by side"):
        wide_layer(parts, side_by_side[::-1], {"in": 4, "out": 4})
    norms = [nn.BatchNorm2d(2) for _ in range(2)]
    shared = [placed(through=[0, 1]), placed(through=[1, 2])]
    with pytest.raises(EdgecompressError, match="BatchNorm2ds of several networks would share"):
        wide_layer(norms, shared, {"through": 3})


def test_normalised_groups_stay_those_of_each_network() -> None:
    norms = [nn.GroupNorm(2, 4) for _ in range(2)]
    change = wide_layer(
        norms, [placed(through=[0, 1, 2, 3]), placed(through=[4, 5, 6, 7])], {"through": 8}
    )
    assert change.attributes == {"num_channels": 8, "num_groups": 4}


def test_the_layer_that_cannot_hold_its_parts_is_named() -> None:
    parts = [nn.Sequential(nn.BatchNorm1d(2)) for _ in range(2)]
    shared = {("0", "through"): [torch.tensor([0, 1]), torch.tensor([0, 1])]}
    with pytest.raises(UsageError, match=r"Sequential cannot be stacked at '0': .*share channels"):
        wide_network(parts, shared, on_meta=True)
