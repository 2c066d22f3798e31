"""Statistics of BatchNorms, estimated again."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from edgecompress.data import load_data
from edgecompress.models import ModelSource, build
from edgecompress.train.batches import evaluate
from edgecompress.train.fit import fit, label_loss
from edgecompress.train.settings import FitSettings
from edgecompress.train.statistics import BATCH, IMAGES, moving_norms, reestimate_

CPU = torch.device("cpu")


def resnet() -> nn.Module:
    torch.manual_seed(0)
    return build(ModelSource("resnet20", 10, (3, 32, 32)))


def test_they_are_those_of_torchs_own_update_on_the_same_batches() -> None:
    data = load_data("digits")
    ours, theirs = resnet(), resnet()
    ours.eval()
    assert reestimate_(ours, data, CPU)
    assert not ours.training
    places = torch.linspace(0, len(data.train) - 1, IMAGES).long()
    batches = data.normalised(data.train.pixels[places]).split(BATCH)
    update_bn(batches, theirs)
    for (name, mine), other in zip(
        ours.named_buffers(), dict(theirs.named_buffers()).values(), strict=True
    ):
        torch.testing.assert_close(mine, other, msg=name, rtol=1e-2, atol=1e-3)
    assert all(norm.momentum == 0.1 for norm in moving_norms(ours))


def test_frozen_statistics_stay() -> None:
    model = resnet()
    names = [name for name, _ in model.named_children()]
    before = copy.deepcopy(model.state_dict())
    reestimate_(model, load_data("digits"), CPU, frozen=names[:2])
    for name, value in model.state_dict().items():
        if "running" in name:
            frozen = name.split(".")[0] in names[:2]
            assert torch.equal(value, before[name]) == frozen, name


def test_networks_without_batchnorm_are_not_touched() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    assert not reestimate_(model, load_data("digits"), CPU)


@pytest.mark.parametrize("count", [2, 3, 129, 130])
def test_no_batch_has_one_image(count: int) -> None:
    data = load_data("digits")
    small = copy.copy(data)
    object.__setattr__(small, "train", data.train.rows(torch.arange(count)))
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3), nn.Flatten())
    assert reestimate_(model, small, CPU)
    assert torch.isfinite(model[1].running_var).all()


def test_a_short_training_is_judged_as_what_it_learned() -> None:
    """A few steps: the moving averages are still near those of a fresh network."""
    data = load_data("digits")
    settings = FitSettings(epochs=1, batch_size=128, learning_rate=3e-3, warmup=0.0)
    result = fit(resnet(), data, label_loss, settings, seed=0, device=CPU)
    stale = copy.deepcopy(result.model)
    for norm in moving_norms(stale):  # ten steps of momentum 0.1 from a fresh network's
        norm.running_mean.mul_(1 - 0.9**10)
        norm.running_var.mul_(1 - 0.9**10).add_(0.9**10)
    reported = result.best.validation_accuracy
    assert reported == evaluate(result.model, data, data.validation, CPU)[1]
    assert reported > evaluate(stale, data, data.validation, CPU)[1] + 0.05
    update_bn(data.normalised(data.train.pixels).split(128), result.model)
    assert evaluate(result.model, data, data.validation, CPU)[1] == pytest.approx(
        reported, abs=0.06
    )
