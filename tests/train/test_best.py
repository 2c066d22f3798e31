"""The best eligible epoch."""

from __future__ import annotations

import torch
from torch import nn

from edgecompress.train.best import BestEpoch
from edgecompress.train.history import EpochRow


def row(epoch: int, accuracy: float, loss: float = 1.0) -> EpochRow:
    return EpochRow(epoch, 1.0, loss, accuracy, 0.1, 1.0, 1)


def filled(value: float, width: int = 2) -> nn.Linear:
    layer = nn.Linear(width, 1)
    nn.init.constant_(layer.weight, value)
    return layer


def chosen(rows: list[EpochRow]) -> int:
    best = BestEpoch()
    for one in rows:
        best.update(filled(0.0), one, None, 0)
    return best.epoch


def test_accuracy_decides_then_the_loss_then_the_first() -> None:
    assert chosen([row(1, 0.5), row(2, 0.7), row(3, 0.6)]) == 2
    assert chosen([row(1, 0.5, 0.9), row(2, 0.5, 0.8), row(3, 0.5, 0.85)]) == 2
    assert chosen([row(1, 0.5), row(2, 0.5)]) == 1


def test_only_eligible_epochs_count_and_without_one_the_last_network_remains() -> None:
    best, model = BestEpoch(), filled(1.0)
    best.update(model, row(1, 0.9), lambda _: False, 0)
    assert not best.found
    last = filled(2.0)
    assert best.restored(last) is last
    best.update(model, row(2, 0.1), lambda _: True, 0)
    assert best.epoch == 2


def test_the_weights_of_the_best_epoch_are_put_back() -> None:
    best, model = BestEpoch(), filled(1.0)
    best.update(model, row(1, 0.9), None, 0)
    nn.init.constant_(model.weight, 5.0)
    best.update(model, row(2, 0.8), None, 0)
    assert best.restored(model) is model
    assert torch.equal(model.weight, torch.ones(1, 2))


def test_a_state_is_restored_with_the_network_of_its_cuts() -> None:
    before, after = filled(1.0, width=3), filled(2.0)
    best = BestEpoch()
    best.update(before, row(1, 0.9), None, 0)
    best.update(after, row(2, 0.95), None, 1)
    resumed = BestEpoch()
    resumed.resume(best.state(), [filled(0.0, width=3), filled(0.0)])
    restored = resumed.restored(nn.Linear(1, 1))
    assert resumed.epoch == 2
    assert torch.equal(restored.weight, after.weight)
    resumed.update(filled(3.0), row(3, 0.94), None, 1)
    assert resumed.epoch == 2, "it remembers how good the best epoch was"


def test_a_state_before_any_eligible_epoch_is_restored() -> None:
    resumed, last = BestEpoch(), filled(0.0)
    resumed.resume(BestEpoch().state(), [last])
    assert resumed.epoch == 0
    assert resumed.restored(last) is last
