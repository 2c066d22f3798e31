"""What operations do to channels: which groups they leave, and that a cut of those is exact.

Each case is one operation between two layers. Its expected groups are the sizes of the prunable
ones, or the reason why there are none.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgecompress.core import masked, shrink, trace
from tests.networks import EXAMPLE, random_keep


class Around(nn.Module):
    """A convolution with 8 outputs, `operation`, and a Linear that reads 8 channels."""

    def __init__(self, operation: Operation, pooled: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.second = nn.Conv2d(8, 8, 1)
        self.last = nn.Linear(8, 5)
        self.scale = nn.Parameter(torch.rand(8, 1, 1) + 0.5)
        self.layer_norm = nn.LayerNorm([8, 6, 6])
        self.one_norm = nn.GroupNorm(1, 8)
        self.two_norm = nn.GroupNorm(2, 8)
        self.instance_norm = nn.InstanceNorm2d(8, affine=True)
        self.prelu = nn.PReLU(8)
        self.few_groups = nn.Conv2d(8, 8, 1, groups=2)
        self.many_groups = nn.Conv2d(8, 8, 1, groups=4)
        self.depthwise = nn.Conv2d(8, 8, 1, groups=8)
        self.transposed = nn.ConvTranspose2d(8, 8, 2, 2)
        self.shuffle = nn.ChannelShuffle(4)
        self.unflatten = nn.Unflatten(1, (2, 4))
        self.operation, self.pooled = operation, pooled

    def forward(self, x: Tensor) -> Tensor:
        y = self.operation(self, self.first(x))
        if not self.pooled:
            y = F.adaptive_avg_pool2d(y, 1).flatten(1)
        result: Tensor = self.last(y)
        return result


Operation = Callable[[Around, Tensor], Tensor]


def shuffled(net: Around, x: Tensor) -> Tensor:
    n, c, h, w = x.size(0), x.size(1), x.size(2), x.size(3)
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)


EXACT: dict[str, tuple[Operation, list[int]]] = {
    "relu": (lambda net, x: F.relu(x), [8]),
    "a number": (lambda net, x: 2 * x + 1, [8]),
    "residual": (lambda net, x: x + net.second(x), [8]),
    "residual in place": (lambda net, x: x.add_(net.second(x)), [8]),
    "keywords": (lambda net, x: torch.add(input=x, other=net.second(x)), [8]),
    "maximum of two": (lambda net, x: torch.max(x, net.second(x)), [8]),
    "layer called twice": (lambda net, x: net.second(net.second(x)), [8]),
    "bare parameter": (lambda net, x: x * net.scale, [8]),
    "squeeze and excite": (
        lambda net, x: x * torch.sigmoid(net.second(x.mean((2, 3), keepdim=True))),
        [8],
    ),
    "instance norm": (lambda net, x: net.instance_norm(x), [8]),
    "prelu": (lambda net, x: net.prelu(x), [8]),
    "group norm": (lambda net, x: net.two_norm(x), [2]),
    "few groups": (lambda net, x: net.few_groups(x), [4, 4]),
    "many groups": (lambda net, x: net.many_groups(x), [4]),
    "depthwise": (lambda net, x: net.depthwise(x), [8]),
    "transposed": (lambda net, x: net.transposed(x), [8, 8]),
    "channel shuffle": (lambda net, x: net.shuffle(x), [2]),
    "channel shuffle by views": (shuffled, [4]),
    "chunks": (lambda net, x: torch.cat(x.chunk(2, 1)[::-1], 1), [4]),
    "computed split": (lambda net, x: torch.cat(x.split(x.size(1) // 2, 1), 1), [4]),
    "cat of channels": (lambda net, x: torch.cat([x, net.second(x)], 1).chunk(2, 1)[0], [8]),
    "cat along the height": (lambda net, x: torch.cat(x.chunk(2, 2), 2), [8]),
    "permute": (lambda net, x: x.permute(0, 2, 3, 1).permute(0, 3, 1, 2), [8]),
    "flip": (lambda net, x: x.flip(1), [8]),
    "row": (lambda net, x: x[:, :, :1], [8]),
    "max pool": (lambda net, x: F.max_pool2d(x, 2), [8]),
    "interpolate": (lambda net, x: F.interpolate(x, scale_factor=2), [8]),
    "pad": (lambda net, x: F.pad(x, (1, 1)), [8]),
}

POOLED: dict[str, Operation] = {
    "mean over space": lambda net, x: x.mean((2, 3)),
    "mean over the last axes": lambda net, x: x.mean([-1, -2]),
    "maximum by keyword": lambda net, x: torch.amax(torch.amax(x, dim=3), dim=2),
    "view by size": lambda net, x: x.view(x.shape[0], x.shape[1], -1).mean(2),
}

FROZEN: dict[str, tuple[Operation, str]] = {
    "softmax": (lambda net, x: x.softmax(1), "operation softmax"),
    "layer norm": (lambda net, x: net.layer_norm(x), "operation LayerNorm"),
    "norm of all channels": (lambda net, x: net.one_norm(x), "one_norm normalises across channels"),
    "split by size": (
        lambda net, x: torch.cat(torch.split(x, [3, 5], 1), 1),
        "a hard-coded split of channels",
    ),
    "index": (
        lambda net, x: torch.cat([x[:, :3], x[:, 3:]], 1),
        "a hard-coded index into channels",
    ),
    "view to numbers": (
        lambda net, x: x.view(-1, 2, 4, 6, 6).transpose(1, 2).reshape(-1, 8, 6, 6),
        "a hard-coded view to (1, 2, 4, 6, 6)",
    ),
    "unflatten": (
        lambda net, x: net.unflatten(x).flatten(1, 2),
        "a hard-coded Unflatten to (1, 2, 4, 6, 6)",
    ),
    "mean of channels": (lambda net, x: x * x.mean(1, keepdim=True), "mean across channels"),
    "more channels": (
        lambda net, x: F.pad(x, (0, 0, 0, 0, 0, 2))[:, :8],
        "operation pad changes the number of channels",
    ),
    "several results": (
        lambda net, x: x.topk(2, 1)[0].repeat(1, 4, 1, 1),
        "operation topk with several results",
    ),
}


def around(operation: Operation, pooled: bool = False) -> nn.Module:
    torch.manual_seed(0)
    return Around(operation, pooled).double().eval()


def images() -> Tensor:
    return torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def check_cuts(model: nn.Module, sizes: list[int]) -> None:
    graph = trace(model, images()[:1])
    assert [group.size for group in graph.groups] == sizes
    for seed in range(3):
        keep = random_keep(graph.groups, seed, 0.5)
        with torch.no_grad():
            expected = masked(model, keep)(images())
            torch.testing.assert_close(shrink(model, keep)(images()), expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", EXACT)
def test_channels_can_be_cut_around_an_operation(name: str) -> None:
    operation, sizes = EXACT[name]
    check_cuts(around(operation), sizes)


@pytest.mark.parametrize("name", POOLED)
def test_channels_can_be_cut_before_a_reduction(name: str) -> None:
    check_cuts(around(POOLED[name], pooled=True), [8])


@pytest.mark.parametrize("name", FROZEN)
def test_channels_that_cannot_be_cut_are_frozen_with_the_reason(name: str) -> None:
    operation, reason = FROZEN[name]
    graph = trace(around(operation), images()[:1])
    assert reason in {group.frozen for group in graph.frozen if group.name == "first"}
    assert not any(group.name == "first" for group in graph.groups)


def test_a_hard_coded_view_freezes_its_group_and_is_named() -> None:
    class Hard(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * 1024, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(self.conv(x).view(-1, 4096))

    graph = trace(Hard(), EXAMPLE.float())
    assert not graph.groups
    assert any("hard-coded view" in str(f.frozen) and f.name == "conv" for f in graph.frozen)
