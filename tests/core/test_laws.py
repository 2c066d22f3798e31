"""Laws 1-3 of the channel graph, as property tests in float64 over narrow copies of every
topology.
"""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecompress.core import layers, masked, shrink, trace
from tests.networks import EXAMPLE, NARROW, graph_of, narrow, random_keep

SEEDS = st.integers(0, 2**20)
SHARES = st.floats(0.1, 1.0)


def images(seed: int, count: int = 2) -> torch.Tensor:
    return torch.randn(
        count, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )


@pytest.mark.parametrize("name", NARROW)
def test_law_1_every_position_of_every_axis_is_in_exactly_one_group(name: str) -> None:
    model = narrow(name, 0)
    graph = trace(model, EXAMPLE)
    owners: Counter[tuple[str, str, int]] = Counter()
    for group in (*graph.groups, *graph.frozen):
        for member in group.members:
            assert member.index.shape[0] == group.size
            owners.update(
                (member.layer, member.axis, position)
                for position in member.index.reshape(-1).tolist()
            )
    assert set(owners.values()) == {1}
    for layer, module in model.named_modules():
        for axis in layers.axes(module):
            size = layers.axis_size(module, axis)
            assert sum(owners[(layer, axis, position)] for position in range(size)) == size, (
                layer,
                axis,
            )


@pytest.mark.parametrize("name", NARROW)
def test_law_1_input_and_output_are_never_prunable(name: str) -> None:
    model = narrow(name, 0)
    graph = trace(model, EXAMPLE)
    mixing = [n for n, m in model.named_modules() if layers.is_mixing(m)]
    touched = {(m.layer, m.axis) for g in graph.groups for m in g.members}
    assert (mixing[0], "in") not in touched
    assert (mixing[-1], "out") not in touched
    assert {f.frozen for f in graph.frozen} >= {"the network's input", "the network's output"}


@pytest.mark.parametrize("name", NARROW)
@given(seed=SEEDS)
def test_law_2_keeping_all_is_the_identity(name: str, seed: int) -> None:
    model, graph = narrow(name, seed), graph_of(name)
    same = shrink(model, {g: torch.ones(g.size, dtype=torch.bool) for g in graph.groups})
    assert type(same) is type(model)
    assert {k: v.shape for k, v in same.state_dict().items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }
    with torch.no_grad():
        assert torch.equal(same(images(seed)), model(images(seed)))


@pytest.mark.parametrize("name", NARROW)
@settings(max_examples=3)
@given(seed=SEEDS, share=SHARES)
def test_law_2_shrinking_composes(name: str, seed: int, share: float) -> None:
    model, graph = narrow(name, seed), graph_of(name)
    first = random_keep(graph.groups, seed, 0.8)
    once = shrink(model, first)
    again = trace(once, EXAMPLE)
    # groups of the shrunk network have the same order where none was emptied; match them by
    # their members
    second = random_keep(again.groups, seed + 1, share)
    both = {}
    by_layers = {tuple((m.layer, m.axis) for m in g.members): g for g in again.groups}
    for group in graph.groups:
        twin = by_layers.get(tuple((m.layer, m.axis) for m in group.members))
        if twin is None or twin.size != int(first[group].sum()):
            return
        mask = first[group].clone()
        mask[first[group]] = second[twin]
        both[group] = mask
    with torch.no_grad():
        expected = shrink(model, both)(images(seed))
        torch.testing.assert_close(shrink(once, second)(images(seed)), expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", NARROW)
@given(seed=SEEDS, share=SHARES)
def test_law_3_masked_equals_shrunk(name: str, seed: int, share: float) -> None:
    model = narrow(name, seed)
    graph = graph_of(name)
    before = copy.deepcopy(model.state_dict())
    keep = random_keep(graph.groups, seed, share)
    small, zeroed = shrink(model, keep), masked(model, keep)
    with torch.no_grad():
        expected = zeroed(images(seed))
        torch.testing.assert_close(small(images(seed)), expected, atol=1e-9, rtol=0)
        if any(not mask.all() for mask in keep.values()):
            assert sum(p.numel() for p in small.parameters()) < sum(
                p.numel() for p in model.parameters()
            )
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items()), (
        "the argument was changed"
    )


def test_law_3_is_not_vacuous() -> None:
    """Dropping channels changes what the network computes, so that equality in law 3 is
    not trivial.
    """
    for name in NARROW:
        model, graph = narrow(name, 3), graph_of(name)
        keep = random_keep(graph.groups, 3, 0.5)
        with torch.no_grad():
            assert not torch.allclose(
                masked(model, keep)(images(3)), model(images(3)), atol=1e-6
            ), name


@pytest.mark.parametrize("name", ["vgg16", "resnet18", "densenet121", "mobilenet_v2"])
def test_float32_stays_within_the_bound(name: str) -> None:
    model, graph = narrow(name, 5).float(), graph_of(name)
    keep = random_keep(graph.groups, 5, 0.5)
    with torch.no_grad():
        expected = masked(model, keep)(images(5).float())
        difference = (shrink(model, keep)(images(5).float()) - expected).abs().max()
    assert difference <= 1e-5 * max(1.0, float(expected.abs().max()))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "vgg16",
        "resnet18",
        "resnet50",
        "densenet121",
        "mobilenet_v2",
        "shufflenet_v2_x1_0",
        "googlenet",
    ],
)
def test_full_width(name: str) -> None:
    from edgecompress.models import ModelSource, build

    torch.manual_seed(0)
    model = build(ModelSource(name, 10, (3, 64, 64))).eval()
    example = torch.randn(2, 3, 64, 64)
    graph = trace(model, example)
    keep = random_keep(graph.groups, 0, 0.5)
    with torch.no_grad():
        expected = masked(model, keep)(example)
        difference = (shrink(model, keep)(example) - expected).abs().max()
    assert difference <= 1e-5 * max(1.0, float(expected.abs().max()))
