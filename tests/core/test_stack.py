"""Law 4: the wide network equals the average of its parts, on every topology; and what cannot be
stacked is refused with the reason.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from edgecompress.core import shrink, trace
from edgecompress.core.stack import check_alike, check_stackable, stack
from edgecompress.errors import UsageError
from edgecompress.models import ModelSource, build
from edgecompress.models.small import Mlp
from tests.networks import EXAMPLE, NARROW, narrow

STACKABLE = sorted(set(NARROW) - {"functional"})


def images(seed: int, count: int = 2) -> torch.Tensor:
    return torch.randn(
        count,
        *EXAMPLE.shape[1:],
        dtype=torch.float64,
        generator=torch.Generator().manual_seed(seed),
    )


@pytest.mark.parametrize("name", STACKABLE)
@pytest.mark.parametrize("count", [2, 3])
def test_law_4(name: str, count: int) -> None:
    parts = [narrow(name, seed) for seed in range(count)]
    try:
        wide = stack(parts, EXAMPLE)
    except UsageError as error:
        pytest.fail(str(error))
    x = images(7)
    with torch.no_grad():
        expected = torch.stack([part(x) for part in parts]).mean(0)
        torch.testing.assert_close(wide(x), expected, atol=1e-9, rtol=1e-9)


@given(st.integers(0, 1000))
def test_keeping_one_network_of_the_stack_gives_it_back(seed: int) -> None:
    """All logits are halved: the other network's half of the mean is gone."""
    parts = [narrow("resnet18", seed), narrow("resnet18", seed + 1)]
    for part in parts:
        nn.init.zeros_(part.fc.bias)
    wide = stack(parts, EXAMPLE)
    graph = trace(wide, EXAMPLE)
    x = images(seed)
    for number in (0, 1):
        keep = {g: torch.arange(g.size) // (g.size // 2) == number for g in graph.groups}
        with torch.no_grad():
            torch.testing.assert_close(
                2 * shrink(wide, keep)(x), parts[number](x), atol=1e-9, rtol=1e-9
            )


def test_weights_between_networks_exist_and_are_zero() -> None:
    parts = [narrow("vgg16", seed) for seed in (0, 1)]
    wide = stack(parts, EXAMPLE)
    first, second = wide.features[0].weight, wide.features[2].weight
    assert tuple(first.shape[:2]) == (8, 3)
    assert tuple(second.shape[:2]) == (8, 8)
    assert not second[:4, 4:].any()
    assert not second[4:, :4].any()
    assert second[:4, :4].any()


def test_statistics_of_batchnorm_are_carried() -> None:
    parts = [narrow("resnet20", seed) for seed in (0, 1)]
    wide = stack(parts, EXAMPLE)
    torch.testing.assert_close(wide.bn1.running_var, torch.cat([p.bn1.running_var for p in parts]))
    torch.testing.assert_close(
        wide.bn1.running_mean, torch.cat([p.bn1.running_mean for p in parts])
    )


def test_mismatched_parts_are_listed_tensor_by_tensor() -> None:
    with pytest.raises(
        UsageError,
        match=(
            r"differ in 3 tensor\(s\).*layers\.1\.weight \(100, 4\) / \(90, 4\).*"
            r"edgecompress distill"
        ),
    ):
        stack([Mlp(4, (100,)), Mlp(4, (90,))], torch.zeros(1, 4))
    with pytest.raises(UsageError, match="Mlp / Linear"):
        stack([Mlp(4, (3,)), nn.Linear(4, 10)], torch.zeros(1, 4))


def test_normalisation_across_channels_is_refused() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.last = nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.norm(self.first(x)))  # type: ignore[no-any-return]

    with pytest.raises(UsageError, match=r"cannot be stacked.*LayerNorm"):
        stack([Normed(), Normed()], torch.zeros(1, 4))


def test_channels_that_must_stay_are_named() -> None:
    """A map of one channel that scales all others: two networks would need two."""
    with pytest.raises(
        UsageError, match=r"group 'attention' must stay as it is \(broadcast across channels\)"
    ):
        stack([narrow("functional", 0), narrow("functional", 1)], EXAMPLE)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["vgg16", "resnet18", "resnet20", "densenet121", "mobilenet_v2", "lenet5"]
)
def test_law_4_at_full_width(name: str) -> None:
    torch.manual_seed(0)
    parts = [build(ModelSource(name, 10, (3, 32, 32))).eval() for _ in range(2)]
    wide = stack(parts, torch.zeros(1, 3, 32, 32))
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(wide(x), (parts[0](x) + parts[1](x)) / 2, atol=1e-4, rtol=1e-4)


def test_what_can_be_checked_without_values_is_checked() -> None:
    with pytest.raises(UsageError, match="no network to stack"):
        check_alike([])
    with pytest.raises(UsageError, match="heads 'both' is not known"):
        stack([Mlp(4)], torch.zeros(1, 4), heads="both")
    check_stackable([narrow("resnet20", seed) for seed in (0, 1)], EXAMPLE)
    with pytest.raises(UsageError, match="group 'attention' must stay as it is"):
        check_stackable([narrow("functional", seed) for seed in (0, 1)], EXAMPLE)


def test_one_network_alone_is_its_own_stack() -> None:
    model = narrow("lenet5", 0)
    wide = stack([model], EXAMPLE)
    assert wide is not model
    with torch.no_grad():
        assert torch.equal(wide(images(0)), model(images(0)))
