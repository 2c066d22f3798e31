"""The trace of what runs: values beside nodes, and errors with the user's line."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

from edgecompress.core.concrete import concrete_trace
from edgecompress.errors import UsageError
from tests.core.odd_networks import Net, SubclassConv, SubclassNorm, conv


def test_every_node_has_its_value() -> None:
    traced = concrete_trace(Net(), torch.zeros(2, 3, 8, 8))
    shapes = {node.name: tuple(value.shape) for node, value in traced.values.items()
              if isinstance(value, Tensor) and node.op == "call_module"}  # fmt: skip
    assert shapes == {"a": (2, 8, 8, 8), "b": (2, 8, 8, 8), "c": (2, 8, 8, 8), "fc": (2, 10)}
    assert all(value.is_meta for value in traced.values.values() if isinstance(value, Tensor))


def test_a_size_stays_an_operation_and_a_number_a_number() -> None:
    class Reshaped(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(x.shape[0], 2, x.shape[1] // 2, 64)

    (node,) = (
        node
        for node in concrete_trace(Reshaped(), torch.zeros(1, 4, 8, 8)).graph.nodes
        if node.target == "reshape"
    )
    assert [isinstance(size, fx.Node) for size in node.args[1:]] == [True, False, True, False]


def test_a_layer_whose_forward_is_its_kinds_is_one_node() -> None:
    def calls(model: nn.Module) -> set[str]:
        graph = concrete_trace(model, torch.zeros(1, 3, 8, 8)).graph
        return {str(node.target) for node in graph.nodes if node.op == "call_module"}

    assert "b" in calls(SubclassConv())
    assert "n" not in calls(SubclassNorm()), "its own forward is traced"


def test_what_depends_on_values_is_refused_with_the_line() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = conv(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return y if y.mean() > 0 else -y

    with pytest.raises(UsageError, match=r"Branch cannot run .*test_concrete\.py.*y\.mean\(\) > 0"):
        concrete_trace(Branch(), torch.zeros(1, 3, 8, 8))


def test_the_network_is_left_as_it_was() -> None:
    model = Net()
    model.a.register_forward_hook(lambda module, inputs, out: out * 2)
    concrete_trace(model, torch.zeros(1, 3, 8, 8))
    assert "forward" not in vars(model.a)
    assert model.training
    assert model(torch.zeros(2, 3, 8, 8)).shape == (2, 10)
