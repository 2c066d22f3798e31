"""Groups of a traced network: what shares one, how they are named, and that tracing has no side
effects. The laws that hold for every network are in `test_laws`.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgecompress.core import consumers, trace
from edgecompress.core.graph import _components
from edgecompress.errors import UsageError
from tests.networks import EXAMPLE, graph_of, narrow


def test_a_module_called_twice_is_one_member() -> None:
    model = narrow("functional", 0)
    graph = trace(model, EXAMPLE)
    assert (
        sum(
            m.layer == "shared" and m.axis == "in"
            for g in (*graph.groups, *graph.frozen)
            for m in g.members
        )
        == 1
    )


def test_tracing_reads_and_changes_nothing() -> None:
    model = narrow("resnet20", 0).train()
    before = {k: (v.data_ptr(), v.clone()) for k, v in model.state_dict().items()}
    trace(model, EXAMPLE)
    assert model.training
    assert all(
        v.data_ptr() == before[k][0] and torch.equal(v, before[k][1])
        for k, v in model.state_dict().items()
    )


def test_layers_that_write_one_residual_stream_share_a_group() -> None:
    graph = graph_of("resnet20")
    group = graph.group("conv1")
    writers = {member.layer for member in group.members if member.axis == "out"}
    assert writers == {"conv1", "layers.0.conv2"}
    assert {(member.layer, member.axis) for member in group.members} >= {
        ("bn1", "through"),
        ("layers.0.conv1", "in"),
    }


def test_a_channel_behind_a_flatten_owns_one_input_per_pixel() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(4 * 36, 2))
    (group,) = trace(model, torch.zeros(1, 3, 6, 6)).groups
    index = next(member.index for member in group.members if member.layer == "2")
    assert torch.equal(index, torch.arange(4 * 36).reshape(4, 36))


def test_the_input_of_a_depthwise_convolution_is_no_consumer() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 2, 1))
    (group,) = trace(model, torch.zeros(1, 3, 6, 6)).groups
    assert [member.layer for member in consumers(model, group)] == ["2"]


def test_an_unknown_group_is_named_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"no prunable group 'nowhere': there are features\.0, "):
        graph_of("vgg16").group("nowhere")


def test_an_example_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UsageError, match=r"cannot run on an input of shape \(1, 5\)"):
        trace(nn.Sequential(nn.Linear(4, 2)), torch.zeros(1, 5))


def test_coupled_labels_are_connected_components() -> None:
    edges = [torch.tensor([[5, 1], [3, 5]]), torch.tensor([[2, 4]])]
    assert _components(edges, 7).tolist() == [0, 1, 2, 1, 2, 1, 6]
    chain = torch.stack([torch.arange(99), torch.arange(1, 100)], 1)
    assert not _components([chain], 100).any()
    assert _components([], 3).tolist() == [0, 1, 2]
