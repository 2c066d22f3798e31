"""Networks with ordinary code are cut to the same function, or not cut where they cannot be."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgecompress.core import graph as graphs
from edgecompress.core import masked, shrink
from edgecompress.core.proof import OTHER, check, sound, trace
from edgecompress.errors import EdgecompressError
from tests.core.odd_networks import CASES, Count, Net

EXAMPLE = torch.zeros(1, 3, 8, 8)


def cut_at_random(model: nn.Module, graph: graphs.ChannelGraph, seed: int) -> float:
    """The largest difference between the masked and the shrunk network, float64."""
    generator = torch.Generator().manual_seed(seed)
    keep = {}
    for group in graph.groups:
        kept = torch.rand(group.size, generator=generator) < 0.6
        kept[int(torch.randint(group.size, (), generator=generator))] = True
        keep[group] = kept
    x = torch.randn(2, 3, 8, 8, generator=generator, dtype=torch.float64)
    model = model.double().eval()
    with torch.no_grad():
        return float((masked(model, keep)(x) - shrink(model, keep)(x)).abs().max())


@pytest.mark.parametrize(
    ("make", "groups"), CASES.items(), ids=lambda case: getattr(case, "__name__", "")
)
def test_what_can_be_cut_keeps_its_function(
    make: Callable[[], nn.Module], groups: set[str]
) -> None:
    torch.manual_seed(0)
    model = make()
    graph = trace(model, EXAMPLE)
    assert {group.name for group in graph.groups} == groups
    assert all(cut_at_random(model, graph, seed) < 1e-9 for seed in range(3))


def test_data_parallel_is_traced_through() -> None:
    model = nn.DataParallel(Net())
    graph = trace(model, EXAMPLE)
    assert {group.name for group in graph.groups} == {"module.a", "module.b", "module.c"}
    assert cut_at_random(model, graph, 0) < 1e-9


def test_the_proof_finds_what_the_trace_cannot_see() -> None:
    model = Count()
    before = graphs.trace(model, EXAMPLE)
    assert {group.name for group in before.groups} == {"a", "b", "c"}
    after = sound(model, before)
    assert [(group.name, group.frozen) for group in after.frozen if group.name == "a"] == [
        ("a", OTHER)
    ]


def test_the_model_is_neither_read_nor_changed() -> None:
    model = Count()
    with torch.device("meta"):
        empty = Count()
    assert [group.name for group in trace(empty, EXAMPLE).groups] == ["b", "c"]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sound(model, graphs.trace(model, EXAMPLE))
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


class Pair(Net):
    """Two widths must be equal: each alone, and both together, can be cut to other ones."""

    def mid(self, x: Tensor) -> Tensor:
        y = self.b(x)
        return y if y.shape[1] == x.shape[1] else y * 2


def test_widths_that_must_agree_are_frozen_together() -> None:
    assert {group.name for group in trace(Pair(), EXAMPLE).groups} <= {"c"}


def test_a_cut_that_changes_the_function_names_its_group() -> None:
    model = Count()
    graph = graphs.trace(model, EXAMPLE)
    keep = {group: torch.arange(group.size) < 5 for group in graph.groups}
    with pytest.raises(EdgecompressError, match=r"the channels of a cannot be cut like this"):
        check(model, keep, EXAMPLE)
    check(model, {g: mask for g, mask in keep.items() if g.name != "a"}, EXAMPLE)


class Rough(Net):
    """Constants of float32, and a plain tensor: float64 has no product with the first."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = [torch.eye(64)]
        self.scale = torch.full((1,), 2.0)

    def mid(self, x: Tensor) -> Tensor:
        mapped = x.flatten(2) @ self.tables[0]
        return self.b(mapped.reshape(x.shape)) * self.scale


def test_a_network_that_runs_in_float32_only_is_proved_there() -> None:
    assert {group.name for group in trace(Rough(), EXAMPLE).groups} == {"b", "c"}


class Undefined(Net):
    """Outputs that are not finite anywhere are no reason to freeze."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.log(-self.body(x).abs() - 1)


def test_outputs_that_are_not_finite_are_compared_too() -> None:
    assert {group.name for group in trace(Undefined(), EXAMPLE).groups} == {"a", "b", "c"}


class Power(Net):
    """The same modules, and code that depends on an attribute."""

    def __init__(self, power: float) -> None:
        super().__init__()
        self.power = power

    def mid(self, x: Tensor) -> Tensor:
        return self.b(x) * x.shape[1] ** self.power


def test_a_network_is_proved_though_one_of_the_same_modules_was() -> None:
    found = [{g.name for g in trace(Power(power), EXAMPLE).groups} for power in (0, -0.5, 0)]
    assert found == [{"a", "b", "c"}, {"b", "c"}, {"a", "b", "c"}]


class Picky(Net):
    """It refuses what no image of random weights is."""

    def body(self, x: Tensor) -> Tensor:
        out = super().body(x)
        if not out.is_meta:
            raise ValueError("not of my training")
        return out


def test_a_network_that_does_not_run_uncut_is_named_as_such() -> None:
    graph = trace(Picky(), EXAMPLE)
    assert graph.groups == ()
    reasons = {group.frozen for group in graph.frozen}
    assert any("does not run on random weights" in str(reason) for reason in reasons)


class OtherGroups(Net):
    """The layer's weight, used with groups that the layer does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.g = nn.Conv2d(4, 8, 3, padding=1)

    def mid(self, x: Tensor) -> Tensor:
        return self.b(F.conv2d(x, self.g.weight, self.g.bias, padding=1, groups=2))


class Several(Net):
    """A dict of outputs, a gated unit, and a layer that is called twice."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        y = F.glu(self.b(self.b(F.relu(self.a(x)))), 1)
        return {"map": y, "mean": y.mean((2, 3))}


@pytest.mark.parametrize("make", [OtherGroups, Several])
def test_networks_that_nobody_named_keep_their_function(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = make()
    graph = trace(model, EXAMPLE)
    keep = {g: torch.arange(g.size) % 2 == 0 for g in graph.groups}
    model = model.double().eval()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        large, small = masked(model, keep)(x), shrink(model, keep)(x)
    torch.testing.assert_close(large, small)
