"""Where the positions of several networks go in the wide one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgecompress.core import trace
from edgecompress.core.placement import UNPLACED, final, provisional
from edgecompress.core.widen import wide_network
from tests.networks import EXAMPLE, NARROW, graph_of, narrow


def chain() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 4))


def test_networks_follow_one_another_on_a_growing_axis() -> None:
    graph = trace(chain(), torch.zeros(1, 2))
    placement = provisional(2, graph, graph.groups)
    assert [places.tolist() for places in placement[("0", "out")]] == [[0, 1, 2], [3, 4, 5]]
    assert [places.tolist() for places in placement[("2", "in")]] == [[0, 1, 2], [3, 4, 5]]
    assert [places.tolist() for places in placement[("0", "in")]] == [[0, 1], [0, 1]]
    assert [places.tolist() for places in placement[("2", "out")]] == [[0, 1, 2, 3]] * 2
    wide = wide_network([chain(), chain()], placement, on_meta=True)
    settled = final(2, graph, graph.groups, trace(wide, torch.zeros(1, 2)))
    assert {axis: [p.tolist() for p in places] for axis, places in settled.items()} == {
        axis: [p.tolist() for p in places] for axis, places in placement.items()
    }


@pytest.mark.parametrize("name", sorted(set(NARROW) - {"functional"}))
def test_every_position_of_a_growing_axis_is_taken_once(name: str) -> None:
    graph = graph_of(name)
    parts = [narrow(name, seed) for seed in (0, 1)]
    grown = [*graph.groups]
    shapes = wide_network(parts, provisional(2, graph, grown), on_meta=True)
    placement = final(2, graph, grown, trace(shapes, EXAMPLE))
    growing = {(m.layer, m.axis) for group in grown for m in group.members}
    frozen = {(m.layer, m.axis) for group in graph.frozen for m in group.members}
    for axis in growing - frozen:
        places = torch.cat(placement[axis])
        assert UNPLACED not in places
        assert torch.equal(places.sort().values, torch.arange(len(places))), axis
