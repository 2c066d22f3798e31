"""Batches of the training split, their order, and the score on another split."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from edgecompress.data import DataSet, Images, load_data
from edgecompress.data.images import Augmentation
from edgecompress.train import distributed
from edgecompress.train.batches import batches, evaluate, order
from edgecompress.train.settings import FitSettings

CPU = torch.device("cpu")


def first_digits(count: int, augmentation: Augmentation | None = None) -> DataSet:
    data = load_data("digits")
    train = Images(data.train.pixels[:count], data.train.labels[:count])
    return replace(data, train=train, augmentation=augmentation or Augmentation())


def test_the_order_is_a_function_of_seed_and_epoch_alone() -> None:
    first = order(100, 3, 1)
    torch.manual_seed(99)
    assert torch.equal(order(100, 3, 1), first)
    assert not torch.equal(order(100, 3, 2), first)
    assert not torch.equal(order(100, 4, 1), first)
    assert torch.equal(first.sort().values, torch.arange(100))


def test_every_sample_is_drawn_once_with_its_label_and_pixels() -> None:
    data = load_data("digits")
    parts = list(batches(data, FitSettings(1, batch_size=100), CPU, 0, 1))
    assert sorted(torch.cat([b.ids for b in parts]).tolist()) == list(range(1169))
    for batch in (parts[0], parts[-1]):
        assert torch.equal(batch.labels, data.train.labels[batch.ids])
        assert torch.equal(batch.pixels, data.train.pixels[batch.ids])
        assert batch.images.shape == (len(batch.ids), *data.image_shape)
        assert batch.global_size == len(batch.ids)


def test_skipped_batches_change_nothing_about_the_others() -> None:
    data = first_digits(100, Augmentation(flip=True, shift=2))
    settings = FitSettings(2, batch_size=30)
    every = list(batches(data, settings, CPU, 0, 2))
    rest = list(batches(data, settings, CPU, 0, 2, skip=2))
    assert [len(b.ids) for b in every] == [30, 30, 30, 10]
    for batch, expected in zip(rest, every[2:], strict=True):
        assert torch.equal(batch.ids, expected.ids)
        assert torch.equal(batch.images, expected.images)


def test_a_last_batch_of_one_sample_is_left_out_unless_it_is_the_only_one() -> None:
    assert [len(b.ids) for b in batches(first_digits(31), FitSettings(1, 10), CPU, 0, 1)] == [
        10
    ] * 3
    assert [len(b.ids) for b in batches(first_digits(1), FitSettings(1, 10), CPU, 0, 1)] == [1]


def test_two_processes_share_every_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    data, settings = first_digits(43), FitSettings(1, batch_size=20)
    alone = list(batches(data, settings, CPU, 0, 1))
    monkeypatch.setattr(distributed, "size", lambda: 2)
    shares = []
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append(list(batches(data, settings, CPU, 0, 1)))
    assert [b.global_size for b in shares[0]] == [20, 20], "3 samples are too few for 2 processes"
    for first, second, expected in zip(*shares, alone, strict=False):
        assert torch.equal(torch.cat([first.ids, second.ids]).sort()[0], expected.ids.sort()[0])


def test_evaluation_is_the_tasks_loss_and_score_and_restores_the_mode() -> None:
    data = load_data("digits")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.9), nn.Linear(3 * 32 * 32, 10)).train()
    loss, score = evaluate(model, data, data.validation, CPU, size=50)
    assert model.training
    with torch.no_grad():
        logits = model.eval()(data.normalised(data.validation.pixels))
    assert loss == pytest.approx(float(data.task.loss(logits, data.validation.labels)), rel=1e-5)
    assert score == data.task.score(logits, data.validation.labels)
