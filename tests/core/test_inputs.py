"""Networks with several inputs and outputs, and of other shapes than square images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgecompress.core import masked, shrink
from edgecompress.core.proof import trace
from edgecompress.errors import UsageError
from tests.networks import random_keep


class Two(nn.Module):
    """An image and a vector, an optional mask; a dict of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.vector = nn.Linear(5, 8)
        self.fc = nn.Linear(8, 4)
        self.box = nn.Linear(8, 2)

    def forward(self, image: Tensor, vector: Tensor, mask: Tensor | None = None) -> Any:
        x = self.conv(image).relu().mean((2, 3)) + self.vector(vector)
        if mask is not None:
            x = x * mask
        return {"classes": self.fc(x), "boxes": [self.box(x)]}


class Rest(nn.Module):
    """Any number of inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Linear(3, 6), nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        x = self.a(inputs[0]) * self.b(inputs[1])
        return self.fc(x), x.sum(1)


class Tokens(nn.Module):
    """Integers beside an image."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(2, 8)
        self.conv, self.hidden, self.fc = nn.Conv1d(3, 8, 3), nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, signal: Tensor, kind: Tensor) -> Tensor:
        return self.fc(self.hidden(self.conv(signal).mean(2) + self.table(kind)).relu())


def signal() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 8, 5, 2), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 6, 3), nn.ReLU(),
        nn.AdaptiveAvgPool1d(4), nn.Flatten(), nn.Linear(24, 3),
    )  # fmt: skip


def volume() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(1, 6, 3),
        nn.ReLU(),
        nn.ConvTranspose3d(6, 4, 2, 2),
        nn.Flatten(),
        nn.LazyLinear(3),
    )


def table() -> nn.Module:
    return nn.Sequential(nn.Linear(7, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3))


def image() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 9 * 4, 3))


CASES: dict[str, tuple[Any, tuple[Tensor, ...], set[str]]] = {
    "image and vector": (Two, (torch.zeros(1, 3, 8, 8), torch.zeros(1, 5)), {"conv"}),
    "with a mask": (
        Two,
        (torch.zeros(1, 3, 8, 8), torch.zeros(1, 5), torch.zeros(1, 1)),
        {"conv"},
    ),
    "any number": (Rest, (torch.zeros(1, 3), torch.zeros(1, 4)), set()),
    "tokens": (Tokens, (torch.zeros(1, 3, 9), torch.zeros(1, dtype=torch.long)), {"hidden"}),
    "signal": (signal, (torch.zeros(1, 2, 40),), {"0", "3"}),
    "volume": (volume, (torch.zeros(1, 1, 6, 5, 4),), {"0", "2"}),
    "table": (table, (torch.zeros(1, 7),), {"0"}),
    "image that is not square": (image, (torch.zeros(1, 3, 19, 9),), {"0"}),
}


@pytest.mark.parametrize("name", CASES)
def test_what_can_be_cut_is_cut_and_law_3_holds(name: str) -> None:
    build, examples, groups = CASES[name]
    torch.manual_seed(0)
    model = build().eval()
    with torch.no_grad():
        model(*examples)  # a lazy layer gets its size
    model = model.double()
    doubles = [one.double() if one.is_floating_point() else one for one in examples]
    graph = trace(model, *doubles)
    assert {group.name for group in graph.groups} == groups
    inputs = [
        torch.randn(3, *one.shape[1:], dtype=torch.float64)
        if one.is_floating_point()
        else torch.tensor([0, 1, 1])
        for one in examples
    ]
    keep = random_keep(graph.groups, 1, 0.5)
    with torch.no_grad():
        small, large = shrink(model, keep)(*inputs), masked(model, keep)(*inputs)
    torch.testing.assert_close(small, large)


@dataclass
class Fields:
    logits: Tensor


class Object(nn.Module):
    """An output with fields, and a tensor that is kept while it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 12, 1), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Fields:
        self.kept = self.conv(x).relu()
        return Fields(self.fc(self.kept.mean((2, 3))))


def test_outputs_with_fields_are_compared_and_tensors_that_are_kept_are_copied() -> None:
    model, x = Object().eval(), torch.randn(2, 3, 8, 8)
    model(x)  # with a gradient
    graph = trace(model, x[:1])
    assert [group.name for group in graph.groups] == ["conv"]
    keep = random_keep(graph.groups, 0, 0.5)
    torch.testing.assert_close(shrink(model, keep)(x).logits, masked(model, keep)(x).logits)


class Text(nn.Module):
    """No tensor comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> str:
        return str(self.b(self.a(x)).dim())


def test_what_returns_no_tensor_is_not_proved() -> None:
    assert trace(Text().eval(), torch.zeros(1, 3)).groups == ()


def test_an_input_that_is_missing_is_named() -> None:
    with pytest.raises(UsageError, match="needs an input 'vector' too"):
        trace(Two(), torch.zeros(1, 3, 8, 8))
