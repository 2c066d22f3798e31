"""Inputs of layers, computed once and held."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgecompress.methods.activations import CHUNK, inputs_of, recorded_inputs, samples_within
from edgecompress.models import ModelSource, build


def test_each_layer_runs_once_for_the_cache() -> None:
    """The cost is linear in the depth: one pass of the network, however many layers it has."""
    calls: list[str] = []

    class Counted(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            calls.append("call")
            return super().forward(x)

    model = nn.Sequential(*(layer for _ in range(6) for layer in (Counted(4, 4), nn.ReLU())))
    inputs_of(model, [str(2 * n) for n in range(6)], torch.randn(100, 4))
    assert len(calls) == 6


def test_the_inputs_are_those_of_all_chunks_in_order_of_execution() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    x = torch.randn(CHUNK + 5, 4)
    recorded = inputs_of(model, ["2", "0"], x)
    assert list(recorded) == ["0", "2"]
    torch.testing.assert_close(recorded["0"], x)
    torch.testing.assert_close(recorded["2"], model[:2](x).detach())


def test_the_last_call_of_a_layer_is_recorded_and_hooks_are_removed() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared, self.last = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.shared(self.last(self.shared(x)))

    model, x = Twice(), torch.randn(1, 2)
    with recorded_inputs(model, ["shared", "last"]) as recorded:
        model(x)
    assert list(recorded) == ["last", "shared"]
    torch.testing.assert_close(recorded["shared"], model.last(model.shared(x)).detach())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_memory_is_bounded() -> None:
    model = build(ModelSource("resnet20", 10, (3, 32, 32)))
    few = samples_within(model, torch.zeros(1, 3, 32, 32), 10**8)
    more = samples_within(model, torch.zeros(1, 3, 32, 32), 10**9)
    assert 64 < few < more <= 10 * (few + 1)
    assert samples_within(model, torch.zeros(1, 3, 32, 32), 1) == 64
