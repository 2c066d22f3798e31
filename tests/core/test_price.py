"""Prices: what a network is predicted to cost is what the shrunk network costs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgecompress.core import layers, shrink
from edgecompress.core.price import Price, Widths, full_widths, pricer
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


@pytest.mark.parametrize("name", NARROW)
def test_the_gradient_is_the_price_of_one_more_channel(name: str) -> None:
    """Exact for central differences, since no price is more than quadratic in one width."""
    model, graph = narrow(name, 0), graph_of(name)
    channelwise = [n for n, m in model.named_modules() if layers.is_channelwise(m)]
    names = graph.output_shapes
    price = Price(
        dict.fromkeys(names, 4.0), dict.fromkeys(names, 3.0), 7.0, dict.fromkeys(channelwise, 2.0)
    )
    priced, kept = pricer(model, graph, price), full_widths(graph) * 0.5
    for number, slope in enumerate(priced.gradient(kept).tolist()):
        step = torch.zeros_like(kept)
        step[number] = 0.5
        assert slope == pytest.approx(priced.cost(kept + step) - priced.cost(kept - step))


def test_channelwise_layers_and_the_fixed_part_are_counted() -> None:
    model, graph = narrow("vgg16_bn", 0), graph_of("vgg16_bn")
    kept = full_widths(graph)
    price = Price({}, {}, fixed=100.0, per_channel={"features.1": 2.0})
    assert pricer(model, graph, price).cost(kept) == 100 + 2 * 4
    kept[graph.groups.index(graph.group("features.0"))] = 3
    assert pricer(model, graph, price).cost(kept) == 100 + 2 * 3


@pytest.mark.parametrize("name", NARROW)
def test_widths_of_the_uncut_network_are_its_own(name: str) -> None:
    model, graph = narrow(name, 0), graph_of(name)
    widths = Widths(model, graph)
    inputs, outputs = widths.at(full_widths(graph))
    assert torch.equal(inputs, widths.full["in"])
    assert torch.equal(outputs, widths.full["out"])
    assert outputs.tolist() == [
        layers.axis_size(model.get_submodule(layer), "out") for layer in widths.layers
    ]
