"""A training that is resumed from any of its states ends with the result of one that was not
stopped.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from edgecompress.core import trace
from edgecompress.data import DataSet, Images, load_data
from edgecompress.methods.features import FeatureLoss, default_pairs
from edgecompress.models import ModelSource, build
from edgecompress.train.companion import Kept, NoCompanion
from edgecompress.train.fit import FitResult, Hooks, fit, label_loss
from edgecompress.train.resume import FitState, copied, replay_cuts
from edgecompress.train.settings import FitSettings

CPU = torch.device("cpu")
EXAMPLE = torch.zeros(1, 3, 32, 32)


def network(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build(ModelSource(name, 10, (3, 32, 32)))


def small_data() -> DataSet:
    """The first 300 training digits, which are 5 batches of 64."""
    data = load_data("digits")
    train, validation = (
        Images(split.pixels[:300], split.labels[:300]) for split in (data.train, data.validation)
    )
    return replace(data, train=train, validation=validation)


def cut(model: nn.Module, epoch: int) -> dict[object, torch.Tensor] | None:
    """One channel of every group goes after the first epoch."""
    if epoch != 1:
        return None
    return {g: torch.arange(g.size) < g.size - 1 for g in trace(model, EXAMPLE).groups}


def trained(
    keep: Callable[[Kept], None] | None = None, begin: Kept | None = None
) -> tuple[FitResult, FeatureLoss]:
    """Two epochs with dropout and averaged weights, a cut between them, and adapters that train
    too.
    """
    student, teacher = network("student1"), network("resnet20", 1).eval()
    pairs = default_pairs(student, teacher, EXAMPLE, EXAMPLE)
    data = small_data()
    loss = FeatureLoss.of_pairs("hint", pairs, student, teacher, data.preprocess, label_loss)
    hooks = Hooks(cut=cut, companion=loss, keep=keep, keep_every=3, begin=begin)
    settings = FitSettings(2, 64, 2e-3, average=0.3)
    result = fit(student, data, loss, settings, seed=0, device=CPU, hooks=hooks)
    return result, loss


@pytest.fixture(scope="module")
def uninterrupted() -> tuple[FitResult, FeatureLoss, list[Kept]]:
    """A training, and its states in the first epoch, after the cut, and before the end."""
    states: list[Kept] = []
    result, loss = trained(keep=states.append)
    return result, loss, states


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_resumed_training_ends_with_the_same_result(
    uninterrupted: tuple[FitResult, FeatureLoss, list[Kept]], place: int
) -> None:
    result, loss, states = uninterrupted
    assert [(s["epoch"], s["done"], s["step"]) for s in states] == [(1, 3, 3), (2, 1, 6), (2, 4, 9)]
    resumed, resumed_loss = trained(begin=copy.deepcopy(states[place]))
    assert resumed.best_epoch == result.best_epoch
    for actual, expected in zip(resumed.history, result.history, strict=True):
        assert (actual.train_loss, actual.validation_loss, actual.cut) == (
            expected.train_loss,
            expected.validation_loss,
            expected.cut,
        )
    for actual, expected in zip(
        [*resumed.model.parameters(), *resumed_loss.parameters()],
        [*result.model.parameters(), *loss.parameters()],
        strict=True,
    ):
        assert torch.equal(actual, expected)


def test_a_state_has_the_documented_keys_and_is_read_without_running_code() -> None:
    states: list[Kept] = []
    hooks = Hooks(keep=states.append, keep_last=5)
    settings = FitSettings(1, 64)
    fit(
        network("lenet5"),
        small_data(),
        label_loss,
        settings,
        seed=0,
        device=CPU,
        hooks=hooks,
    )
    (state,) = states
    assert set(state) == set(FitState.__annotations__)
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert loaded["step"] == 5
    assert all(torch.equal(loaded["model"][name], state["model"][name]) for name in state["model"])


def test_cuts_are_replayed_on_the_first_network() -> None:
    model = network("lenet5")
    masks = [
        {group.name: torch.arange(group.size) < group.size - removed}
        for group in trace(model, EXAMPLE).groups[:1]
        for removed in (1,)
    ]
    name, mask = next(iter(masks[0].items()))
    second = {name: torch.arange(int(mask.sum())) > 0}
    first, middle, last = replay_cuts(model, [masks[0], second], NoCompanion(), EXAMPLE)
    assert first is model
    sizes = [trace(m, EXAMPLE).group(name).size for m in (first, middle, last)]
    assert sizes == [len(mask), len(mask) - 1, len(mask) - 2]


def test_a_copied_state_does_not_follow_its_network() -> None:
    layer = nn.Linear(2, 2)
    state = copied(layer)
    before = layer.weight.detach().clone()
    nn.init.zeros_(layer.weight)
    assert torch.equal(state["weight"], before)
