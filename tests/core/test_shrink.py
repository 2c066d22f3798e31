"""Keep masks: what is refused, which positions they leave, and that results are independent of
their source. That masked and shrunk networks agree is law 3, in `test_laws`.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgecompress.core import shrink, trace
from edgecompress.core.shrink import find, kept_positions, rebuilt
from edgecompress.errors import UsageError
from tests.networks import EXAMPLE, graph_of, narrow


def test_invalid_keep_masks_are_refused() -> None:
    model = narrow("vgg16", 0)
    graph = trace(model, EXAMPLE)
    group = graph.groups[0]
    with pytest.raises(UsageError, match="drops all"):
        shrink(model, {group: torch.zeros(group.size, dtype=torch.bool)})
    with pytest.raises(UsageError, match=r"torch\.bool"):
        shrink(model, {group: torch.ones(group.size)})
    with pytest.raises(UsageError, match="is frozen"):
        frozen = graph.frozen[0]
        shrink(model, {frozen: torch.arange(frozen.size) > 0})


def test_a_group_of_another_model_is_refused() -> None:
    large = nn.Sequential(nn.Linear(2, 9), nn.Linear(9, 2))
    small = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 2))
    (group,) = trace(large, torch.zeros(1, 2)).groups
    with pytest.raises(UsageError, match="traced on another model"):
        shrink(small, {group: torch.arange(9) < 4})
    with pytest.raises(UsageError, match="no layer '0' in Linear"):
        shrink(nn.Linear(2, 2), {group: torch.arange(9) < 4})


def test_kept_positions_are_given_for_cut_axes_only() -> None:
    model, group = narrow("vgg16", 0), graph_of("vgg16").group("features.0")
    kept = kept_positions(model, {group: torch.tensor([True, False, True, True])})
    assert {layer: list(axes) for layer, axes in kept.items()} == {
        "features.0": ["out"],
        "features.2": ["in"],
    }
    assert kept["features.2"]["in"].tolist() == [True, False, True, True]
    assert kept_positions(model, {group: torch.ones(4, dtype=torch.bool)}) == {}


def test_a_shrunk_network_shares_no_memory_with_its_source() -> None:
    model, group = narrow("vgg16", 0), graph_of("vgg16").group("features.0")
    small = shrink(model, {group: torch.arange(4) < 2})
    sources = {tensor.data_ptr() for tensor in model.state_dict().values()}
    assert not sources & {tensor.data_ptr() for tensor in small.state_dict().values()}


def test_parameters_that_layers_share_stay_shared() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3), nn.Linear(3, 4))
    model[2].weight = model[0].weight
    copied = rebuilt(model, {})
    assert copied[2].weight is copied[0].weight


def test_layers_are_found_by_name() -> None:
    model = narrow("functional", 0)
    assert find(model, "conv1") is model.conv1
    assert find(model, "scale") is model.scale
    assert find(model, "") is model
