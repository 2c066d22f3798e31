from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edgecompress.core.macs import macs_by_module
from edgecompress.core.proof import trace
from edgecompress.core.shrink import masked, shrink
from tests.networks import EXAMPLE, NARROW, random_keep


class SumsOverChannels(nn.Module):
    """Channels meet channels: a Gram matrix, or attention over channels."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.conv = nn.Conv2d(3, 6, 3, 8)
        self.norm = nn.LayerNorm(6)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.conv(x).flatten(2).transpose(1, 2)  # (B, N, C)
        if self.how == "gram":
            tokens = tokens @ (tokens.transpose(1, 2) @ tokens)
        elif self.how == "softmax":
            tokens = tokens.softmax(-1)
        elif self.how == "normalize":
            tokens = nn.functional.normalize(tokens, dim=-1)
        elif self.how == "default normalize":
            tokens = nn.functional.normalize(tokens.mean(1))[:, None]
        elif self.how == "layer norm":
            tokens = self.norm(tokens)
        else:
            tokens = nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)
        return self.fc(tokens.mean(1))


HOW = ["gram", "softmax", "normalize", "default normalize", "layer norm", "attention"]


@pytest.mark.parametrize("how", HOW)
def test_what_mixes_channels_freezes_them(how: str) -> None:
    model = SumsOverChannels(how).eval()
    graph = trace(model, EXAMPLE.float())
    assert graph.groups == ()
    assert all(isinstance(group.frozen, str) for group in graph.frozen)


class OverPositions(nn.Module):
    """The same operations over positions, which are no channels."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.conv = nn.Conv2d(3, 6, 3, 8)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.conv(x).flatten(2)  # (B, C, N)
        if self.how == "softmax":
            maps = maps.softmax(dim=-1)
        elif self.how == "normalize":
            maps = nn.functional.normalize(maps, dim=2)
        else:
            maps = nn.functional.layer_norm(maps, maps.shape[2:])
        return self.fc(maps.amax(2))


@pytest.mark.parametrize("how", ["softmax", "normalize", "layer norm"])
def test_what_mixes_positions_keeps_the_channels(how: str) -> None:
    graph = trace(OverPositions(how).eval(), EXAMPLE.float())
    assert [group.name for group in graph.groups] == ["conv"]


class Shared(nn.Module):
    """Two heads of queries for each of keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.kept, self.depth = 4, 2, 3
        self.conv = nn.Conv2d(3, 8, 8, 8)
        self.q, self.kv, self.fc = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).flatten(2).transpose(1, 2)
        b, n = x.shape[0], x.shape[1]
        q = self.q(x).view(b, n, self.heads, self.depth).transpose(1, 2)
        k, v = self.kv(x).chunk(2, -1)
        k, v = (part.reshape(b, n, self.kept, self.depth).transpose(1, 2) for part in (k, v))
        out = nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return self.fc(out.transpose(1, 2).flatten(2).mean(1))


def test_heads_that_share_keys_stay() -> None:
    graph = trace(Shared().eval(), EXAMPLE.float())
    assert [group.name for group in graph.groups] == ["conv"]


@pytest.mark.parametrize("name", ["heads", "fused heads"])
def test_products_cost_what_their_heads_cost(name: str) -> None:
    model = NARROW[name]().eval()
    graph = trace(model, EXAMPLE.float())
    assert graph.product_macs == {"qkv": 2 * 16 * 16 * 3}
    small = shrink(model, {graph.group("qkv"): torch.tensor([True, True, False, False])})
    whole, half = (macs_by_module(net, EXAMPLE.float())[""] for net in (model, small))
    assert (whole, half) == (4 * 1536, 2 * 1536)


class Filters(nn.Module):
    """A bare tensor of filters that something beside a convolution reads, or that has two names."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.channels = how, 8
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.fc = nn.Linear(8, 5)
        filters = torch.randn(8, 1, 3, 3) / 3
        if how == "tied to a layer":
            self.dw = nn.Conv2d(8, 8, 3, groups=8, bias=False)
            self.filters = self.dw.weight
        else:
            self.filters = nn.Parameter(filters)
            self.other = self.filters if how == "two names" else nn.Parameter(filters.clone())

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(x).relu()
        if self.how == "tied to a layer":
            y = self.dw(y)
        elif self.how == "two names":
            y = nn.functional.conv2d(y, self.other, groups=self.channels)
        y = self.conv2(y).relu()
        y = nn.functional.conv2d(y, self.filters, groups=self.channels)
        if self.how == "read elsewhere":
            y = y * self.filters.norm().clamp(max=1)
        return self.fc(y.mean((2, 3)))


@pytest.mark.parametrize("how", ["read elsewhere", "two names", "tied to a layer"])
def test_filters_with_other_readers_are_cut_alike_or_not_at_all(how: str) -> None:
    torch.manual_seed(0)
    model = Filters(how).double().eval()
    example = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    graph = trace(model, example)
    prunable = {group.name for group in graph.groups}
    if how == "read elsewhere":
        assert prunable == {"conv1"}
    elif how == "two names":
        assert prunable == {"conv1"}, "both convolutions lose the same channels"
    for seed in range(3):
        keep = random_keep(graph.groups, seed, 0.5)
        with torch.no_grad():
            torch.testing.assert_close(shrink(model, keep)(example), masked(model, keep)(example))
