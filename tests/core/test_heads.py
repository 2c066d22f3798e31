"""Outputs of stacked networks: averaged behind the wide network, side by side, or one again."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgecompress.core.heads import Averaged, with_equal_heads, with_one_head
from edgecompress.core.stack import stack
from edgecompress.models import ModelSource, build
from tests.networks import EXAMPLE, narrow


def images(seed: int, count: int = 2) -> torch.Tensor:
    return torch.randn(
        count,
        *EXAMPLE.shape[1:],
        dtype=torch.float64,
        generator=torch.Generator().manual_seed(seed),
    )


def tail_that_is_not_affine(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3), nn.Sigmoid()).double()


def test_separate_heads_lie_side_by_side() -> None:
    parts = [narrow("densenet121", seed) for seed in (0, 1)]
    wide = stack(parts, EXAMPLE, heads="separate")
    x = images(3)
    with torch.no_grad():
        torch.testing.assert_close(
            wide(x), torch.cat([part(x) for part in parts], 1), atol=1e-9, rtol=1e-9
        )


def test_a_tail_that_is_not_affine_is_averaged_behind_it() -> None:
    parts = [tail_that_is_not_affine(seed) for seed in (0, 1, 2)]
    x = torch.randn(5, 4, dtype=torch.float64)
    wide = stack(parts, x)
    assert isinstance(wide, Averaged)
    with torch.no_grad():
        torch.testing.assert_close(
            wide(x), torch.stack([p(x) for p in parts]).mean(0), atol=1e-12, rtol=1e-12
        )


def test_an_averaged_network_becomes_one_of_the_parts_class_with_the_mean_of_their_heads() -> None:
    parts = [tail_that_is_not_affine(seed) for seed in (0, 1, 2)]
    x = torch.randn(5, 4, dtype=torch.float64)
    single = with_one_head(stack(parts, x), x)
    assert type(single) is nn.Sequential
    assert single[0].out_features == 18
    assert single[2].out_features == 3
    torch.testing.assert_close(single[2].bias, torch.stack([p[2].bias for p in parts]).mean(0))
    plain = narrow("lenet5", 0)
    assert with_one_head(plain, EXAMPLE) is plain


def test_heads_are_padded_with_outputs_that_are_zero() -> None:
    small, large = nn.Sequential(nn.Linear(4, 2)), nn.Sequential(nn.Linear(4, 5))
    padded, counts = with_equal_heads([small, large], torch.zeros(1, 4))
    assert counts == [2, 5]
    assert padded[1] is large
    x = torch.rand(3, 4)
    torch.testing.assert_close(padded[0](x)[:, :2], small(x))
    assert not padded[0](x)[:, 2:].any()


@pytest.mark.parametrize("name", ["mlp", "lenet5", "resnet20", "mobilenet_v2"])
def test_separate_heads_may_have_different_numbers_of_classes(name: str) -> None:
    sizes = (3, 7, 5)
    torch.manual_seed(0)
    parts = [build(ModelSource(name, size, (3, 32, 32))).double().eval() for size in sizes]
    example = torch.zeros(1, 3, 32, 32, dtype=torch.float64)
    wide = stack(parts, example, heads="separate")
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(
            wide(x), torch.cat([part(x) for part in parts], 1), atol=1e-9, rtol=1e-9
        )
