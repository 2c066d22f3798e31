"""Networks with ordinary code that a trace of operations alone would get wrong, or refuse."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


class Net(nn.Module):
    """Three convolutions; `mid` is what the cases change."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.fc = conv(3, 8), conv(8, 8), conv(8, 8), nn.Linear(8, 10)

    def mid(self, x: Tensor) -> Tensor:
        return self.b(x)

    def body(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.c(F.relu(self.mid(F.relu(self.a(x)))))).mean((2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class TiedWeights(Net):
    def __init__(self) -> None:
        super().__init__()
        self.c.weight = self.b.weight


class TiedBiases(Net):
    def __init__(self) -> None:
        super().__init__()
        self.c.bias = self.b.bias


class TwoDilations(Net):
    """One weight in two convolutions."""

    def mid(self, x: Tensor) -> Tensor:
        wide = F.conv2d(x, self.b.weight, self.b.bias, padding=2, dilation=2)
        return self.b(x) + wide


class WeightRead(Net):
    def mid(self, x: Tensor) -> Tensor:
        return self.b(x) * self.b.weight.abs().mean()


class ScaleRead(Net):
    """The scale of a norm, read for the channels of another layer."""

    def __init__(self) -> None:
        super().__init__()
        self.n = nn.BatchNorm2d(8)
        nn.init.uniform_(self.n.weight, 0.5, 2.0)

    def mid(self, x: Tensor) -> Tensor:
        return self.b(self.n(x)) * self.n.weight.view(1, -1, 1, 1)


class Roll(Net):
    def mid(self, x: Tensor) -> Tensor:
        return self.b(torch.roll(x, 2, 1))


class PadShift(Net):
    def mid(self, x: Tensor) -> Tensor:
        return self.b(F.pad(x, (0, 0, 0, 0, 1, -1)))


class Count(Net):
    """A number computed from the number of channels."""

    def mid(self, x: Tensor) -> Tensor:
        return self.b(x) * x.shape[1] ** -0.5


class Numel(Net):
    def mid(self, x: Tensor) -> Tensor:
        return self.b(x) * (1000 / x[0].numel())


class Attribute(Net):
    def mid(self, x: Tensor) -> Tensor:
        return self.b(x) / self.b.in_channels


class TypeCheck(Net):
    def mid(self, x: Tensor) -> Tensor:
        return self.b(x) + (x if torch.is_tensor(x) else 0)


class Hook(Net):
    def __init__(self) -> None:
        super().__init__()
        self.a.register_forward_hook(lambda module, inputs, out: out.flip(1).roll(1, 1))


class SizesOfInput(Net):
    """The sizes of the input, used for the output: right while both have one width."""

    def mid(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return self.b(x).flatten(2).reshape(n, c, h, w)


class ExpandOther(Net):
    def __init__(self) -> None:
        super().__init__()
        self.g = conv(8, 1)

    def mid(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.g(x))
        return self.b(x) * gate.expand(x.shape[0], x.shape[1], -1, -1)


class IndexList(Net):
    def mid(self, x: Tensor) -> Tensor:
        return self.b(x[:, [7, 6, 5, 4, 3, 2, 1, 0]])


class IndexBuffer(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("order", torch.arange(7, -1, -1))

    def mid(self, x: Tensor) -> Tensor:
        return self.b(x[:, self.order])


class WeightNorm(Net):
    def __init__(self) -> None:
        super().__init__()
        self.b = nn.utils.parametrizations.weight_norm(conv(8, 8))


class Flag(Net):
    def forward(self, x: Tensor, features: bool = False) -> Tensor:  # type: ignore[override]
        return self.a(x) if features else self.body(x)


class Mask(Net):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
        if mask is not None:
            x = x * mask
        return self.body(x)


class ListOfChunks(Net):
    def mid(self, x: Tensor) -> Tensor:
        parts = list(self.b(x).chunk(2, 1))
        parts.reverse()
        return torch.cat(parts, 1)


class StarSize(Net):
    def mid(self, x: Tensor) -> Tensor:
        return self.b(x).flatten(2).reshape(x.size(0), -1, *x.size()[2:])


class ShapeIf(Net):
    def mid(self, x: Tensor) -> Tensor:
        y = self.b(x)
        return F.interpolate(y, x.shape[2:]) if y.shape[2:] != x.shape[2:] else y


class Assert(Net):
    def mid(self, x: Tensor) -> Tensor:
        assert x.shape[1] == self.b.in_channels
        return self.b(x)


class Length(Net):
    def mid(self, x: Tensor) -> Tensor:
        return self.b(x).reshape(len(x), -1, *x.shape[2:])


class Slice(Net):
    """A part of a Sequential: a module that was made on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Sequential(conv(8, 8), nn.ReLU(), conv(8, 8))

    def mid(self, x: Tensor) -> Tensor:
        return self.f[1:](self.f[:1](x))


class SetItem(Net):
    def mid(self, x: Tensor) -> Tensor:
        y = self.b(x)
        y[:, :, :2] = 0
        return y


class CatByKeyword(Net):
    def mid(self, x: Tensor) -> Tensor:
        return torch.cat(tensors=[self.b(x)], dim=1)


class NormByPosition(Net):
    def mid(self, x: Tensor) -> Tensor:
        return self.b(x / (x.norm(2, 1, True) + 1))


class VarByPosition(Net):
    def mid(self, x: Tensor) -> Tensor:
        return self.b(x / (x.var((2, 3), False, True) + 1))


class Constant(Net):
    def mid(self, x: Tensor) -> Tensor:
        return self.b(x * torch.full((1, 1, 1, 1), 0.5, dtype=x.dtype))


class Remembered(Net):
    """A constant that the first call makes from sizes, and a layer reads."""

    def __init__(self) -> None:
        super().__init__()
        self.places: Tensor | None = None
        self.n = nn.Linear(3, 8)

    def mid(self, x: Tensor) -> Tensor:
        if self.places is None:
            self.places = torch.zeros(1, x.shape[2], 3, dtype=x.dtype)
            self.places[:, :, 1] = 0.5
        shift = self.n(self.places.expand(x.shape[0], -1, -1))  # (B, H, 8)
        return self.b(x + shift.transpose(1, 2)[:, :, :, None])


class MyConv(nn.Conv2d):
    pass


class SubclassConv(Net):
    def __init__(self) -> None:
        super().__init__()
        self.b = MyConv(8, 8, 3, padding=1)


class NormAct(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


class SubclassNorm(Net):
    def __init__(self) -> None:
        super().__init__()
        self.n = NormAct(8)

    def mid(self, x: Tensor) -> Tensor:
        return self.b(self.n(x))


ALL = {"a", "b", "c"}
"""Groups of a network of which all can be cut."""
CASES: dict[Callable[[], nn.Module], set[str]] = {
    TiedWeights: {"a"},
    TiedBiases: {"a", "b"},
    TwoDilations: ALL,
    WeightRead: {"c"},
    ScaleRead: {"a", "c"},
    Roll: {"b", "c"},
    PadShift: {"b", "c"},
    Count: {"b", "c"},
    Numel: {"b", "c"},
    Attribute: {"b", "c"},
    TypeCheck: {"a", "c"},
    Hook: {"b", "c"},
    SizesOfInput: {"c"},
    ExpandOther: {"c"},
    IndexList: {"b", "c"},
    IndexBuffer: {"b", "c"},
    WeightNorm: {"c"},
    Flag: ALL,
    Mask: ALL,
    ListOfChunks: ALL,
    StarSize: ALL,
    ShapeIf: ALL,
    Assert: ALL,
    Length: ALL,
    Slice: {"a", "f.0", "f.2", "c"},
    SetItem: ALL,
    CatByKeyword: ALL,
    NormByPosition: {"b", "c"},
    VarByPosition: ALL,
    Constant: ALL,
    Remembered: ALL,
    SubclassConv: ALL,
    SubclassNorm: ALL,
}
"""Each network with the groups that can be cut."""
