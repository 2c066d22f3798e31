"""The registry of exchanges: every entry has a module, and a new one needs no other code."""

from __future__ import annotations

import pytest

from edgecompress.data import DataSet
from edgecompress.errors import UsageError
from edgecompress.online.exchanges import EXCHANGES, REGISTRY, TRAINING, Entry, exchange_of
from edgecompress.online.exchanges.base import Exchange
from tests.online.support import (
    Serve,
    assert_same,
    attend_to_the_end,
    new_student,
    plan_for,
    train_in_one_process,
)


def test_every_exchange_has_a_module(data: DataSet) -> None:
    kinds = {type(exchange_of(plan_for(data, exchange=name))) for name in EXCHANGES}
    kinds.add(type(exchange_of(plan_for(data, mutual=True))))
    assert len(kinds) == len(EXCHANGES) + 1
    assert set(TRAINING) < set(EXCHANGES)


def test_trainable_exchanges_are_those_that_define_a_training(data: DataSet) -> None:
    for name, entry in REGISTRY.items():
        kind = type(exchange_of(plan_for(data, exchange=name)))
        assert (kind.training is not Exchange.training) == entry.trainable, name


def test_unknown_exchange_names_the_allowed_ones(data: DataSet) -> None:
    with pytest.raises(UsageError, match="--exchange 'gradients' is not known: allowed are logits"):
        exchange_of(plan_for(data, exchange="gradients"))


def test_a_module_and_an_entry_add_an_exchange(
    data: DataSet, serve_lesson: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(REGISTRY, "reversed", Entry("tests.online.exchanges.reversed_classes"))
    served = serve_lesson()
    student = new_student(data, plan_for(data, exchange="reversed"))
    result = attend_to_the_end(served, student)
    assert_same(result.model, train_in_one_process(data).model)
