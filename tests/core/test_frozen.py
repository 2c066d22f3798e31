"""What cannot be cut is counted, with its reasons."""

from __future__ import annotations

import torch
from torch import nn

from edgecompress.core.frozen import frozen_share
from edgecompress.core.proof import trace
from tests.core.odd_networks import Net, WeightRead, conv

EXAMPLE = torch.zeros(1, 3, 8, 8)


def test_a_network_that_can_be_cut_everywhere_has_nothing_frozen() -> None:
    model = Net()
    found = frozen_share(model, trace(model, EXAMPLE))
    assert (found.params, found.macs, found.reasons) == (0, 0, {})


def test_the_share_of_a_frozen_layer_and_its_reason() -> None:
    model = WeightRead()
    found = frozen_share(model, trace(model, EXAMPLE))
    total = sum(p.numel() for p in model.parameters())
    frozen = sum(p.numel() for layer in (model.a, model.b) for p in layer.parameters())
    assert found.params == frozen / total
    assert 0 < found.macs < 1
    assert "the weight of b is read in forward" in found.reasons
    assert "of the parameters" in found.text()


def test_a_single_layer_stands_between_input_and_output() -> None:
    model = nn.Sequential(conv(3, 4))
    found = frozen_share(model, trace(model, EXAMPLE))
    assert (found.params, found.macs) == (1, 1)
    assert found.reasons == {"the network's input": 1}


class Gram(Net):
    """Its channels meet in a product, called from a function beside it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.b(self.a(x)).flatten(2)
        return self.fc(products(tokens).mean(2))


def products(tokens: torch.Tensor) -> torch.Tensor:
    return (tokens @ tokens.transpose(1, 2)) @ tokens


def test_a_reason_names_the_lines_that_call_it() -> None:
    model = Gram()
    found = frozen_share(model, trace(model, EXAMPLE))
    line = products.__code__.co_firstlineno + 1
    assert {place for lines in found.lines.values() for place in lines} == {
        f"test_frozen.py:{line}"
    }
