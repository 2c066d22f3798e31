"""The choice of channels: budgets, floors and rounding hold."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgecompress.core import ChannelGroup, layers, shrink
from edgecompress.core.select import (
    Budget,
    Price,
    Selection,
    block_of,
    cheapest,
    floor_of,
    full_widths,
    pricer,
    uniform,
)
from tests.networks import graph_of, narrow

SEEDS = st.integers(0, 2**20)


@pytest.mark.parametrize(
    "name", ["vgg16", "resnet18", "densenet121", "mobilenet_v2", "student3", "regnet_y"]
)
@given(seed=SEEDS, share=st.floats(0.3, 0.95), round_to=st.sampled_from([1, 2, 4]))
def test_budgets_floors_and_rounding_hold(
    name: str, seed: int, share: float, round_to: int
) -> None:
    model, graph = narrow(name, 0), graph_of(name)
    generator = torch.Generator().manual_seed(seed)
    scores = {g: torch.rand(g.size, generator=generator) for g in graph.groups}
    price = Price(dict.fromkeys(graph.output_shapes, 1.0), {})
    full = sum(m.weight.numel() for m in model.modules() if layers.is_mixing(m))
    selection = cheapest(
        model, graph, scores, (Budget(price, share * full),), floor=0.2, round_to=round_to
    )
    small = shrink(model, selection.keep)
    weights = sum(m.weight.numel() for m in small.modules() if layers.is_mixing(m))
    assert selection.costs[0] == weights
    assert selection.met == (weights <= share * full)
    for group, mask in selection.keep.items():
        assert int(mask.sum()) >= floor_of(group.size, 0.2, round_to)
        kept, dropped = scores[group][mask], scores[group][~mask]
        assert not len(dropped) or kept.min() >= dropped.max()


def test_an_impossible_budget_ends_at_the_floors_and_is_not_met() -> None:
    model, graph = narrow("vgg16", 0), graph_of("vgg16")
    scores = {g: torch.ones(g.size) for g in graph.groups}
    selection = cheapest(
        model,
        graph,
        scores,
        (Budget(Price(dict.fromkeys(graph.output_shapes, 1.0), {}), 1.0),),
        floor=0.25,
    )
    assert not selection.met
    assert all(
        int(mask.sum()) == floor_of(group.size, 0.25, 1) for group, mask in selection.keep.items()
    )


def test_channels_go_where_a_weight_costs_the_least_importance() -> None:
    model, graph = narrow("vgg16", 0), graph_of("vgg16")
    scores = {
        g: torch.full((g.size,), 1e-6 if g.name == "classifier.0" else 1.0) for g in graph.groups
    }
    price = Price(dict.fromkeys(graph.output_shapes, 1.0), {})
    full = sum(m.weight.numel() for m in model.modules() if layers.is_mixing(m))
    selection = cheapest(model, graph, scores, (Budget(price, full - 5 * (32 + 10)),))
    cut = {g.name for g, mask in selection.keep.items() if not mask.all()}
    assert cut == {"classifier.0"}


def weights_only(name: str) -> Price:
    return Price(dict.fromkeys(graph_of(name).output_shapes, 1.0), {})


def random_scores(name: str, seed: int) -> dict[ChannelGroup, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {g: torch.rand(g.size, generator=generator) for g in graph_of(name).groups}


def test_groups_that_are_not_named_keep_all_channels() -> None:
    model, graph = narrow("vgg16", 0), graph_of("vgg16")
    selection = cheapest(
        model,
        graph,
        random_scores("vgg16", 0),
        (Budget(weights_only("vgg16"), 1.0),),
        only={"features.0"},
    )
    assert {g.name for g, mask in selection.keep.items() if not mask.all()} == {"features.0"}


def test_several_cuts_end_at_the_floors_of_one() -> None:
    """Floors are shares of the original widths, not of those that an earlier cut left."""
    model, graph = narrow("vgg16", 0), graph_of("vgg16")
    impossible = (Budget(weights_only("vgg16"), 1.0),)
    sizes = {g.name: 2 * g.size for g in graph.groups}
    selection = cheapest(
        model, graph, random_scores("vgg16", 0), impossible, floor=0.25, sizes=sizes
    )
    for group, mask in selection.keep.items():
        assert int(mask.sum()) == floor_of(2 * group.size, 0.25, 1)


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("name", ["vgg16", "resnet20", "mobilenet_v2"])
@given(seed=SEEDS, share=st.floats(0.3, 0.95))
def test_uniform_shares_hold_the_budget_and_the_floors(
    name: str, scope: str, seed: int, share: float
) -> None:
    model, graph, price = narrow(name, 0), graph_of(name), weights_only(name)
    limit = share * pricer(model, graph, price).cost(full_widths(graph))
    selection: Selection = uniform(
        model, graph, random_scores(name, seed), (Budget(price, limit),), scope, floor=0.1
    )
    assert selection.met == (selection.costs[0] <= limit)
    for group, mask in selection.keep.items():
        assert int(mask.sum()) >= floor_of(group.size, 0.1, 1)


def test_uniform_keeps_everything_where_that_fits() -> None:
    model, graph = narrow("vgg16", 0), graph_of("vgg16")
    budget = Budget(weights_only("vgg16"), 1e12)
    selection = uniform(model, graph, random_scores("vgg16", 0), (budget,), "local")
    assert selection.met
    assert all(mask.all() for mask in selection.keep.values())


@pytest.mark.parametrize(
    ("size", "round_to", "block"), [(64, 8, 8), (32, 8, 8), (31, 8, 1), (5, 1, 1)]
)
def test_narrow_groups_are_not_rounded(size: int, round_to: int, block: int) -> None:
    assert block_of(size, round_to) == block
    assert floor_of(size, 0.0, round_to) == block
