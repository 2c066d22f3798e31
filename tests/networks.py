"""Narrow copies of the topologies that the laws are tested on, in float64, with random BatchNorm
statistics.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor, nn

from edgecompress.core import ChannelGraph, ChannelGroup, trace
from edgecompress.models import ModelSource, build
from edgecompress.models.resnet import CifarResNet
from edgecompress.models.vision import torchvision


def _vgg(batch_norm: bool) -> nn.Module:
    from torchvision.models.vgg import VGG, make_layers

    plan = [4, 4, "M", 8, "M", 8, 6, "M", 8, "M", 8, "M"]
    model = VGG(make_layers(plan, batch_norm=batch_norm), num_classes=5)
    model.avgpool = nn.AdaptiveAvgPool2d((2, 2))
    model.classifier = nn.Sequential(
        nn.Linear(32, 12),
        nn.ReLU(True),
        nn.Dropout(),
        nn.Linear(12, 10),
        nn.ReLU(True),
        nn.Linear(10, 5),
    )
    return model


def _resnet18() -> nn.Module:
    from torchvision.models.resnet import BasicBlock, ResNet

    model = ResNet(BasicBlock, [2, 2, 2, 2], num_classes=5)
    return _narrow_resnet(model)


def _narrow_resnet(model: nn.Module) -> nn.Module:
    """Every 64 becomes 4: torchvision's ResNet has no width argument, so its own layers are cut."""
    from edgecompress.core import shrink

    graph = trace(model, torch.zeros(1, 3, 32, 32))
    return shrink(model, {g: torch.arange(g.size) < max(2, g.size // 16) for g in graph.groups})


def _densenet() -> nn.Module:
    from torchvision.models.densenet import DenseNet

    return DenseNet(
        growth_rate=4, block_config=(2, 3, 2, 2), num_init_features=8, bn_size=2, num_classes=5
    )


def short_mobilenet(classes: int = 5, width: float = 0.25) -> nn.Module:
    """A MobileNetV2 with one or two blocks of each kind: ReLU6 and 50 layers more take most of the
    time of an export.
    """
    from torchvision.models.mobilenetv2 import MobileNetV2

    blocks = [[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 2, 2], [6, 64, 1, 1]]
    return MobileNetV2(classes, width, inverted_residual_setting=blocks)


def _mobilenet() -> nn.Module:
    from torchvision.models.mobilenetv2 import MobileNetV2

    return MobileNetV2(num_classes=5, width_mult=0.25)


def _shufflenet() -> nn.Module:
    from torchvision.models.shufflenetv2 import ShuffleNetV2

    return ShuffleNetV2([2, 2, 2], [8, 16, 24, 32, 40], num_classes=5)


def _regnet() -> nn.Module:
    """Grouped convolutions and squeeze-excite."""
    from torchvision.models.regnet import BlockParams, RegNet

    params = BlockParams.from_init_params(
        depth=4, w_0=16, w_a=8.0, w_m=2.0, group_width=8, se_ratio=0.25
    )
    return RegNet(params, num_classes=5, stem_width=8)


def _googlenet_block() -> nn.Module:
    from torchvision.models.googlenet import Inception

    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5))
    return nn.Sequential(nn.Conv2d(3, 6, 3), Inception(6, 6, 4, 8, 3, 6, 4), head)


class Functional(nn.Module):
    """Functional activations, pools and dropout, a view by size, a branch of one channel, a scale
    Parameter, a shared layer.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.attention = nn.Conv2d(8, 1, 1)
        self.scale = nn.Parameter(torch.rand(1, 8, 1, 1) + 0.5)
        self.shared = nn.Conv2d(8, 8, 1)
        self.fc1 = nn.Linear(8 * 16, 12)
        self.norm = nn.BatchNorm1d(12)
        self.fc2 = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.conv1(x)) * self.scale
        x = x * torch.sigmoid(self.attention(x))
        x = x + self.shared(self.shared(torch.nn.functional.elu(self.conv2(x))))
        left, right = x.chunk(2, dim=1)
        x = torch.cat([right, left], 1)
        x = torch.nn.functional.adaptive_avg_pool2d(x, (4, 4))
        x = torch.nn.functional.dropout(x, training=self.training)
        x = self.fc1(x.view(x.size(0), -1))
        return self.fc2(torch.sigmoid(self.norm(x)))


class Heads(nn.Module):
    """Attention over patches, whose heads, width and hidden features are attributes."""

    def __init__(self, fused: bool = False) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.attn_dim = 4, 3, 12
        self.fused = fused
        self.patches = nn.Conv2d(3, 8, 8, 8)
        self.qkv = nn.Linear(8, 36)
        self.norm = nn.LayerNorm(3)
        self.proj = nn.Linear(12, 8)
        self.mlp = nn.Sequential(nn.Linear(8, 10), nn.GELU(), nn.Linear(10, 8))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        b, n, _ = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        q = self.norm(q)
        if self.fused:
            mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        else:
            mixed = (q @ k.transpose(-2, -1) * self.head_dim**-0.5).softmax(dim=-1) @ v
        x = x + self.proj(mixed.transpose(1, 2).reshape(b, n, self.attn_dim))
        return self.head((x + self.mlp(x)).mean(1))


class Widths(nn.Module):
    """Splits and slices by attributes, some of them halved, doubled or in a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.half, self.sizes, self.kept = 8, 4, (3, 5, 4), 6
        self.conv = nn.Conv2d(3, 8, 3, 2, 1)
        self.left = nn.Conv2d(4, 4, 3, padding=1)
        self.wide = nn.Conv2d(8, 12, 1)
        self.parts = nn.ModuleList([nn.Conv2d(size, 6, 1) for size in self.sizes])
        self.more = nn.Conv2d(6, 8, 3, 2, 1)
        self.fc = nn.Linear(6 + 8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu()
        left, right = x.split(self.width // 2, dim=1)
        x = self.wide(torch.cat([self.left(left), right], 1)).relu()
        parts = torch.split(x, self.sizes, dim=1)
        x = sum(part(read) for part, read in zip(self.parts, parts, strict=True))
        more = self.more(x).relu()
        one, two = more[:, : self.half], more[:, self.half :]
        more = torch.cat([two.flip(2), one], 1)
        return self.fc(torch.cat([x.mean((2, 3)), more.mean((2, 3))], 1))


class Blurred(nn.Module):
    """Blur pools: a buffer with a filter for each channel and their number as an attribute, one
    filter that is expanded, and one for each channel that is learned.
    """

    def __init__(self) -> None:
        super().__init__()
        filters = torch.tensor([1.0, 2.0, 1.0]).outer(torch.tensor([1.0, 2.0, 1.0])) / 16
        self.channels = 8
        self.register_buffer("each", filters.expand(8, 1, 3, 3).clone(), persistent=False)
        self.register_buffer("one", filters[None, None], persistent=False)
        self.learned = nn.Parameter(torch.randn(12, 1, 3, 3) / 3)
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 10, 3, padding=1)
        self.conv3 = nn.Conv2d(10, 12, 3, padding=1)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x).relu()
        x = torch.nn.functional.conv2d(x, self.each, stride=2, padding=1, groups=self.channels)
        x = self.conv2(x).relu()
        filters = self.one.expand(x.shape[1], -1, -1, -1)
        x = torch.nn.functional.conv2d(x, filters, stride=2, padding=1, groups=x.shape[1])
        x = self.conv3(x).relu()
        x = torch.nn.functional.conv2d(x, self.learned, None, 1, 1, 1, x.shape[1])
        return self.fc(x.mean((2, 3)))


torchvision()
NARROW: dict[str, Callable[[], nn.Module]] = {
    "vgg16": lambda: _vgg(False),
    "vgg16_bn": lambda: _vgg(True),
    "resnet18": _resnet18,
    "resnet20": lambda: CifarResNet((1, 1, 1), (4, 8, 12), num_classes=5),
    "densenet121": _densenet,
    "mobilenet_v2": short_mobilenet,
    "shufflenet_v2": _shufflenet,
    "regnet_y": _regnet,
    "inception block": _googlenet_block,
    "functional": Functional,
    "heads": Heads,
    "fused heads": lambda: Heads(fused=True),
    "widths": Widths,
    "blurred": Blurred,
    **{
        name: (lambda name=name: build(ModelSource(name, 5, (3, 32, 32))))
        for name in ("student1", "student2", "student3", "lenet5")
    },
}


WHOLE = {"whole mobilenet_v2": _mobilenet}
"""What takes longer, by name."""
EXAMPLE = torch.zeros(1, 3, 32, 32, dtype=torch.float64)


@lru_cache
def _prototype(name: str) -> nn.Module:
    return {**NARROW, **WHOLE}[name]().double().eval()


@lru_cache
def graph_of(name: str) -> ChannelGraph:
    """The channel graph of a narrow network: it does not depend on weights, so it is traced
    once.
    """
    return trace(_prototype(name), EXAMPLE)


def narrow(name: str, seed: int) -> nn.Module:
    """A narrow network in float64 and eval mode, with random BatchNorm statistics and weights that
    keep outputs apart.
    """
    model = copy.deepcopy(_prototype(name))
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 2.0)
            nn.init.normal_(module.bias, 0.0, 0.5)
            module.running_mean.normal_(0.0, 0.3)
            module.running_var.uniform_(0.5, 2.0)
        elif isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.normal_(module.bias, 0.0, 0.3)
    return model


def random_keep(
    groups: tuple[ChannelGroup, ...], seed: int, share: float
) -> dict[ChannelGroup, Tensor]:
    """For each group a random mask that keeps about `share` and at least one channel."""
    generator = torch.Generator().manual_seed(seed)
    keep = {}
    for group in groups:
        mask = torch.rand(group.size, generator=generator) < share
        mask[torch.randint(group.size, (1,), generator=generator)] = True
        keep[group] = mask
    return keep
