"""The planner: budgets hold, floors hold, rounding holds, and what it thinks a network costs is
what the network costs.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgecompress.core import layers, shrink
from edgecompress.core.select import Budget, Price, cheapest, floor_of, pricer
from edgecompress.measure.cost import cost, mac_price
from tests.networks import EXAMPLE, NARROW, graph_of, narrow, random_keep

SEEDS = st.integers(0, 2**20)


@pytest.mark.parametrize("name", NARROW)
@given(seed=SEEDS)
def test_predicted_weights_and_macs_are_those_of_the_shrunk_network(name: str, seed: int) -> None:
    model, graph = narrow(name, 0), graph_of(name)
    keep = random_keep(graph.groups, seed, 0.6)
    small = shrink(model, keep)
    kept = torch.tensor([float(keep[g].sum()) for g in graph.groups], dtype=torch.float64)
    weights = sum(m.weight.numel() for m in small.modules() if layers.is_mixing(m))
    assert (
        pricer(model, graph, Price(dict.fromkeys(graph.output_shapes, 1.0), {})).cost(kept)
        == weights
    )
    assert pricer(model, graph, mac_price(model, graph)).cost(kept) == cost(small, EXAMPLE).macs


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
    whole = sum(m.weight.numel() for m in model.modules() if layers.is_mixing(m))
    selection = cheapest(
        model, graph, scores, (Budget(price, share * whole),), floor=0.2, round_to=round_to
    )
    small = shrink(model, selection.keep)
    weights = sum(m.weight.numel() for m in small.modules() if layers.is_mixing(m))
    assert selection.costs[0] == weights
    assert selection.met == (weights <= share * whole)
    for group, mask in selection.keep.items():
        assert int(mask.sum()) >= floor_of(group.size, 0.2, round_to)
        kept, dropped = scores[group][mask], scores[group][~mask]
        assert not len(dropped) or kept.min() >= dropped.max()


def test_an_impossible_budget_ends_at_the_floors_and_says_so() -> None:
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
    whole = sum(m.weight.numel() for m in model.modules() if layers.is_mixing(m))
    selection = cheapest(model, graph, scores, (Budget(price, whole - 5 * (32 + 10)),))
    cut = {g.name for g, mask in selection.keep.items() if not mask.all()}
    assert cut == {"classifier.0"}
