"""Transfer learning: which modules are frozen, and that they stay as they are."""

from __future__ import annotations

import copy

import pytest
import torch

from edgecompress.data import load_data
from edgecompress.errors import UsageError
from edgecompress.models import ModelSource, build
from edgecompress.train.fit import fit, label_loss
from edgecompress.train.freeze import before_last, freeze_, thaw_
from edgecompress.train.settings import FitSettings

CPU = torch.device("cpu")


def resnet() -> torch.nn.Module:
    torch.manual_seed(0)
    return build(ModelSource("resnet20", 10, (3, 32, 32)))


def test_frozen_modules_keep_weights_and_statistics_and_are_thawed_afterwards() -> None:
    data, model = load_data("digits"), resnet()
    frozen = before_last(model, 5)
    assert "conv1" in frozen
    assert "bn1" in frozen
    assert "fc" not in frozen
    before = copy.deepcopy(model.state_dict())
    settings = FitSettings(epochs=1, batch_size=128, learning_rate=1e-2, frozen=frozen)
    fit(model, data, label_loss, settings, seed=0, device=CPU)
    changed = {
        key.rpartition(".")[0]
        for key, value in model.state_dict().items()
        if not torch.equal(value, before[key])
    }
    assert changed.isdisjoint(frozen)
    assert {"fc", "layers.8.conv2", "layers.8.bn2"} <= changed
    assert all(p.requires_grad for p in model.parameters())


def test_too_many_convolutions_are_refused() -> None:
    with pytest.raises(UsageError, match=r"has 21 convolutions; allowed are 0\.\.21"):
        before_last(resnet(), 22)


def test_the_last_five_convolutions_of_vgg16_are_the_sources() -> None:
    with torch.device("meta"):
        model = build(ModelSource("vgg16-nobias", 10, (3, 32, 32)))
    assert before_last(model, 5) == tuple(f"features.{i}" for i in (0, 2, 5, 7, 10, 12, 14, 17))


def test_freezing_reports_whether_anything_trained_before() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU(), torch.nn.Linear(2, 2))
    assert freeze_(model, ["0"])
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True]
    assert not freeze_(model, ["0"])
    assert not freeze_(model, ["1"])
    thaw_(model, ["0"])
    assert all(p.requires_grad for p in model.parameters())
