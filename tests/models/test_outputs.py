from __future__ import annotations

import copy
import json
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgecompress.core import trace
from edgecompress.errors import UsageError
from edgecompress.models.outputs import main_output, single_output_
from tests.cli.test_cli import run

Named = namedtuple("Named", ["first", "aux"])
ONE, TWO = torch.zeros(2, 3), torch.ones(2, 4)
IMAGE = torch.zeros(1, 3, 16, 16)


@pytest.mark.parametrize(
    "value",
    [
        ONE,
        (ONE, TWO),
        [ONE, {"more": TWO}],
        Named(ONE, TWO),
        {"features": TWO, "out": ONE},
        {"out": TWO, "logits": ONE},
        {"anything": ONE, "count": 3},
        SimpleNamespace(hidden=TWO, logits=ONE),
    ],
)
def test_the_output_that_counts(value: Any) -> None:
    assert main_output(value) is ONE


@pytest.mark.parametrize("value", [{"a": ONE, "b": TWO}, {}, (), [3, ONE], None, "text"])
def test_where_it_is_not_clear_all_names_are_given(value: Any) -> None:
    with pytest.raises(UsageError, match="call the output that counts logits or out"):
        main_output(value)


class Net(nn.Module):
    """A network that returns what `how` says."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Any:
        features = self.norm(self.conv(x)).relu().mean((2, 3))
        logits = self.fc(features)
        if self.how == "dict":
            return {"features": features, "logits": logits}
        if self.how == "tuple":
            return logits, features
        if self.how == "more in training" and self.training:
            return logits, logits
        return logits


@pytest.mark.parametrize("how", ["dict", "tuple", "more in training"])
def test_a_network_with_several_outputs_returns_one_and_keeps_its_tensors(how: str) -> None:
    torch.manual_seed(0)
    model = Net(how)
    before = copy.deepcopy(model.state_dict())
    expected = main_output(copy.deepcopy(model).eval()(IMAGE))
    output, said = single_output_(model, IMAGE)
    assert said is not None
    assert torch.equal(output, expected)
    assert type(model).__name__ == "Net"
    assert isinstance(model, Net)
    assert {k: v.tolist() for k, v in model.state_dict().items()} == {
        k: v.tolist() for k, v in before.items()
    }
    for training in (True, False):
        assert model.train(training)(IMAGE.expand(2, -1, -1, -1)).shape == (2, 10)
    assert type(copy.deepcopy(model)) is type(model)
    assert [group.name for group in trace(model.eval(), IMAGE).groups] == ["conv"]


def test_a_network_with_one_output_stays_as_it_is() -> None:
    model = Net("tensor")
    output, said = single_output_(model, IMAGE)
    assert (tuple(output.shape), said, type(model)) == ((1, 10), None, Net)


OWN = """
from torch import nn


class Net(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, 2)
        self.norm = nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, outputs)

    def forward(self, x):
        x = self.norm(self.conv(x)).relu().mean((2, 3))
        return {"features": x, "logits": self.fc(x)}


def net():
    return Net(10)


def twenty():
    return Net(20)


def autoencoder():
    return nn.Sequential(nn.Conv2d(3, 8, 2, 2), nn.ReLU(), nn.ConvTranspose2d(8, 3, 2, 2))


def unclear():
    class Two(Net):
        def forward(self, x):
            return {"a": x, "b": super().forward(x)["logits"]}

    return Two(10)
"""


def test_a_network_that_returns_a_dict_is_compressed_to_a_file(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    small = ("--target", "4KB", "--epochs", "1", "--distill-epochs", "1", "--steps", "1")
    ended = run("compress", "own.py:net", *small, "-o", "c", cwd=tmp_path)
    assert ended.returncode in (0, 3), ended.stderr
    assert "the main one is used alone" in ended.stderr
    result = json.loads((tmp_path / "c" / "result.json").read_text())
    assert result["student"]["accuracy"] > 0
    predicted = run("predict", "c", "--data", "digits", cwd=tmp_path)
    assert predicted.returncode == 0, predicted.stderr


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("twenty", "gives 20 for one sample, data 'digits' has 10 classes"),
        ("autoencoder", "gives 3x32x32 for one sample"),
        ("unclear", "returns a dict with a, b"),
    ],
)
def test_outputs_that_do_not_fit_the_data_are_refused_before_training(
    tmp_path: Path, name: str, said: str
) -> None:
    (tmp_path / "own.py").write_text(OWN)
    ended = run("compress", f"own.py:{name}", "--target", "4KB", "-o", "c", cwd=tmp_path)
    assert ended.returncode == 2
    assert said in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "c").exists()
