from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from edgecompress.core import masked, shrink
from edgecompress.core.numbers import Number, is_number, number_attributes_, read, write
from edgecompress.core.proof import trace
from tests.networks import EXAMPLE, NARROW, random_keep


def test_a_number_knows_where_it_comes_from_through_exact_arithmetic_only() -> None:
    number = Number(12, "block", "width")
    assert [(int(n), n.factor) for n in (number // 3, number * 2, 2 * number)] == [
        (4, pytest.approx(1 / 3)),
        (24, 2),
        (24, 2),
    ]
    for plain in (number // 5, number + 1, number - 4, number * -1, number % 5):
        assert type(plain) is int
    assert number * 0.5 == 6.0
    assert copy.deepcopy([number])[0].attribute == "width"
    assert (number // 2 * 3).factor == 1.5


def test_integers_of_a_module_become_numbers_and_others_stay() -> None:
    module = nn.Module()
    module.width, module.one, module.flag, module.sizes, module.names = 4, 1, True, (2, 1), ["a"]
    number_attributes_(module, "part")
    assert isinstance(module.width, Number)
    assert module.width.module == "part"
    assert [type(value) for value in module.sizes] == [Number, int]
    assert module.sizes[0].attribute == "sizes[0]"
    assert type(module.one) is int
    assert module.flag is True
    assert module.names == ["a"]


def test_numbers_are_read_and_written_also_in_tuples() -> None:
    module = nn.Module()
    module.width, module.sizes, module.listed = 4, (2, 3), [5, 6]
    write(module, "width", 7)
    write(module, "sizes[1]", 8)
    write(module, "listed[0]", 9)
    assert (module.width, module.sizes, module.listed) == (7, (2, 8), [9, 6])
    assert [read(module, n) for n in ("width", "sizes[0]", "listed[1]")] == [7, 2, 6]
    assert is_number("number:width")
    assert not is_number("in")


@pytest.mark.parametrize("name", ["heads", "fused heads", "widths"])
def test_networks_whose_widths_are_attributes_are_cut_whole(name: str) -> None:
    graph = trace(NARROW[name]().eval(), EXAMPLE.float())
    reasons = {group.frozen for group in graph.frozen}
    allowed = {"the network's input", "the network's output", "parameters of LayerNorm"}
    assert reasons <= allowed


def test_heads_are_cut_as_units() -> None:
    model = NARROW["heads"]().eval()
    group = trace(model, EXAMPLE.float()).group("qkv")
    assert group.size == 4
    keep = torch.tensor([True, False, True, True])
    small = shrink(model, {group: keep})
    assert (small.num_heads, small.head_dim, small.attn_dim) == (3, 3, 9)
    assert (small.qkv.out_features, small.proj.in_features) == (27, 9)
    assert (model.num_heads, model.attn_dim) == (4, 12)


class LiteralPart(nn.Module):
    """A split of which one part has its size in the code."""

    def __init__(self) -> None:
        super().__init__()
        self.first = 6
        self.conv = nn.Conv2d(3, 10, 3)
        self.a, self.b = nn.Conv2d(6, 4, 1), nn.Conv2d(4, 4, 1)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        one, two = torch.split(self.conv(x), [self.first, 4], 1)
        return self.fc((self.a(one).relu() + self.b(two)).mean((2, 3)))


class TwoUses(nn.Module):
    """One attribute is the number of heads, and something that is no channel."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 4
        self.conv = nn.Conv2d(3, 12, 3)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).mean((2, 3)).reshape(len(x), self.count, 3)
        y = y.softmax(2) * self.count
        return self.fc(y.reshape(len(x), -1))


class Remainder(nn.Module):
    """A size that is no whole share of the attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 9
        self.conv = nn.Conv2d(3, 9, 3)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x)[:, : self.width // 2].mean((2, 3)))


class Thirds(nn.Module):
    """Queries, keys and values are slices by multiples of one attribute; the heads are a product of
    two.
    """

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.depth, self.width = 4, 3, 12
        self.conv = nn.Conv2d(3, 36, 8, 8)
        self.proj = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).flatten(2).transpose(1, 2)
        q, k = y[..., : self.width], y[:, :, self.width : 2 * self.width]
        v = y[..., 2 * self.width :]
        b, n = y.shape[0], y.shape[1]
        q, k, v = (part.reshape(b, n, self.heads, self.depth).transpose(1, 2) for part in (q, k, v))
        out = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.proj(out.reshape(b, n, self.heads * self.depth).mean(1))


def test_multiples_and_products_of_attributes_follow_their_heads() -> None:
    model = Thirds().eval()
    (group,) = trace(model, EXAMPLE.float()).groups
    assert group.size == 4
    small = shrink(model, {group: torch.tensor([True, False, False, True])})
    assert (small.heads, small.depth, small.width) == (2, 3, 6)
    assert (small.conv.out_channels, small.proj.in_features) == (18, 6)


class Beyond(nn.Module):
    """A bound behind the last channel."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 100
        self.conv = nn.Conv2d(3, 9, 3)
        self.fc = nn.Linear(9, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x)[:, : self.most].mean((2, 3)))


def test_a_bound_behind_the_last_channel_leaves_all_of_them() -> None:
    graph = trace(Beyond().eval(), EXAMPLE.float())
    assert [group.name for group in graph.groups] == ["conv"]


def test_only_the_part_of_a_split_with_a_size_in_the_code_is_frozen() -> None:
    graph = trace(LiteralPart().eval(), EXAMPLE.float())
    frozen = {(g.frozen, g.size) for g in graph.frozen}
    assert ("a hard-coded split of channels", 4) in frozen
    assert 6 in {group.size for group in graph.groups}


@pytest.mark.parametrize("kind", [TwoUses, Remainder])
def test_a_number_that_cannot_follow_freezes_its_channels(kind: type[nn.Module]) -> None:
    graph = trace(kind().eval(), EXAMPLE.float())
    assert "conv" not in {group.name for group in graph.groups}


@pytest.mark.parametrize("kind", [LiteralPart, TwoUses, Remainder, Thirds])
def test_what_is_left_keeps_law_3(kind: type[nn.Module]) -> None:
    model = kind().double().eval()
    graph = trace(model, EXAMPLE)
    keep = random_keep(graph.groups, 0, 0.5)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(shrink(model, keep)(x), masked(model, keep)(x))
