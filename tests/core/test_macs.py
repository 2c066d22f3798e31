"""MACs where they happen, against torch's own counter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from edgecompress.core import shrink, trace
from edgecompress.core.macs import macs_by_module
from edgecompress.core.price import pricer
from edgecompress.measure.cost import cost, mac_price
from tests.networks import random_keep

EXAMPLE = torch.zeros(1, 3, 32, 32)


class Twice(nn.Module):
    """A convolution that is called twice, on maps of two sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        full, half = self.conv(x), self.conv(x[:, :, ::2, ::2])
        y: torch.Tensor = self.out((full.mean((2, 3)) - half.mean((2, 3))).abs())
        return y


class OwnConv(nn.Conv2d):
    """A convolution of the user's own class."""


class Functional(nn.Module):
    """A product that no layer computes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 3072))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x.flatten(1), self.weight)


class Recurrent(nn.Module):
    """Rows of an image as a sequence."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.first, self.layer = nn.Conv2d(3, 4, 3, (8, 2), 1), layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layer(self.first(x).flatten(1, 2))[0]
        return y


class Attention(nn.Module):
    """A block of attention over patches."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.cut, self.fused = nn.Conv2d(3, 16, 8, 8), fused
        self.block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.cut(x).flatten(2).transpose(1, 2)
        if self.fused:
            z = y[:, None]
            return nn.functional.scaled_dot_product_attention(z, z, z)
        w: torch.Tensor = self.block(y)
        return w


NETWORKS = {
    "twice": Twice(),
    "own": nn.Sequential(nn.Conv2d(3, 8, 3), OwnConv(8, 16, 3, 2)),
    "transposed": nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ConvTranspose2d(8, 6, 3, 2)),
    "grouped": nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ConvTranspose2d(8, 8, 2, 2, groups=4)),
    "depthwise": nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8)),
    "functional": Functional(),
    "gru": Recurrent(nn.GRU(16, 12, 2, batch_first=True, bidirectional=True)),
    "rnn": Recurrent(nn.RNN(16, 12, batch_first=True)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_macs_are_those_of_torchs_counter(name: str) -> None:
    model = NETWORKS[name].eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(EXAMPLE)
    assert counter.get_total_flops() > 0
    assert sum(macs_by_module(model, EXAMPLE).values()) == counter.get_total_flops() // 2
    assert cost(model, EXAMPLE.expand(4, -1, -1, -1)).macs == counter.get_total_flops() // 2


def test_a_layer_that_is_called_twice_counts_twice() -> None:
    conv = 3 * 8 * 9
    found = macs_by_module(Twice(), EXAMPLE)
    assert found == {"conv": conv * (32 * 32 + 16 * 16), "out": 16}
    row = cost(Twice(), EXAMPLE).layers[0]
    assert (row.name, row.macs) == ("conv", found["conv"])


def test_recurrent_layers_and_attention_count_by_hand() -> None:
    """torch's counter sees neither the fused LSTM nor fused attention on a CPU."""
    lstm = Recurrent(nn.LSTM(16, 12, batch_first=True, bidirectional=True))
    steps, gates = 16, 4 * 12
    assert macs_by_module(lstm, EXAMPLE)["layer"] == 2 * steps * gates * (16 + 12)

    tokens, width, hidden = 16, 16, 32
    products = 2 * tokens * tokens * width  # queries by keys, weights by values
    block = tokens * (4 * width * width + 2 * width * hidden) + products
    cut = 3 * width * 64 * tokens
    assert sum(macs_by_module(Attention(fused=False), EXAMPLE).values()) == cut + block
    assert sum(macs_by_module(Attention(fused=True), EXAMPLE).values()) == cut + products


class Head(nn.Module):
    """Attention behind convolutions that can be cut, one of which is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.cut = nn.Conv2d(8, 16, 8, 8)
        self.block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.twice(self.twice(self.first(x)).relu())
        z: torch.Tensor = self.block(self.cut(y).flatten(2).transpose(1, 2)).mean(1)
        return z


@pytest.mark.parametrize("seed", range(3))
def test_the_price_of_a_shrunk_network_is_what_it_executes(seed: int) -> None:
    """What no width changes, attention, has a fixed price."""
    model = Head().eval()
    graph = trace(model, EXAMPLE)
    assert graph.groups
    keep = random_keep(graph.groups, seed, 0.5)
    kept = torch.tensor([float(keep[g].sum()) for g in graph.groups], dtype=torch.float64)
    price = mac_price(model, graph)
    assert price.fixed > 0
    predicted = pricer(model, graph, price).cost(kept)
    assert predicted == cost(shrink(model, keep), EXAMPLE).macs


class Asks(nn.Module):
    """Code that asks for a value, with a recurrent layer and attention."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 6, batch_first=True)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.lstm(x)[0] if x.mean() < 2 else x[..., :6]
        return self.fc(nn.functional.scaled_dot_product_attention(x, x, x).mean(1))


def test_code_that_asks_for_values_is_counted_as_it_runs() -> None:
    found = macs_by_module(Asks(), torch.zeros(1, 5, 8))
    assert found == {"lstm": 5 * 4 * 6 * (8 + 6), "": 2 * 5 * 5 * 6, "fc": 6 * 4}


def test_a_network_that_does_not_run_says_so() -> None:
    with pytest.raises(RuntimeError):
        macs_by_module(Asks(), torch.zeros(1, 5, 7))
