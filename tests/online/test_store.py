"""The state store: which states it holds, and whose they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edgecompress.data import DataSet
from edgecompress.online.plan import label_of
from edgecompress.online.store import StateStore, newest_common
from tests.online.support import plan_for


def test_newest_states_stay(tmp_path: Path) -> None:
    store = StateStore(tmp_path / "kept")
    for step in (10, 20, 30, 40, 50):
        store.put(step, {"step": step, "x": torch.full((3,), float(step))})
    assert store.steps() == [0, 30, 40, 50]

    fresh = StateStore(tmp_path / "kept")
    state = fresh.get(40)
    assert state is not None
    assert float(state["x"][0]) == 40
    fresh.rewind(30)
    assert fresh.steps() == [0, 30]
    assert newest_common(store.steps(), [0, 10, 30, 60]) == 30
    assert newest_common([0], [0, 5]) == 0


def test_states_of_another_lesson_are_deleted(data: DataSet, tmp_path: Path) -> None:
    own = label_of(plan_for(data), {"weights": "1"})
    store = StateStore(tmp_path / "kept")
    assert not store.claim(own)
    store.put(4, {"step": 4})
    assert not StateStore(tmp_path / "kept").claim(own)
    assert store.steps() == [0, 4]
    for foreign in (
        label_of(plan_for(data, run="another"), {"weights": "1"}),
        label_of(plan_for(data), {"weights": "2"}),
    ):
        store.claim(own)
        store.put(4, {"step": 4})
        assert StateStore(tmp_path / "kept").claim(foreign)
        assert store.steps() == [0]


@pytest.mark.parametrize(
    "changes",
    [
        {"window": 64, "keep_every": 10},
        {"exchange": "weights", "window": 1, "keep_every": 1},
    ],
)
def test_store_covers_the_steps_that_the_ends_may_be_apart(
    changes: dict[str, object], data: DataSet
) -> None:
    plan = plan_for(data, **changes)
    epochs = 2 * plan.steps_per_epoch if plan.exchange == "weights" else 0
    apart = max(2 * plan.window, epochs)
    store = plan.store(None)
    for step in range(plan.keep_every, 40 * plan.keep_every, plan.keep_every):
        store.put(step, {})
    assert max(store.steps()) - min(store.steps()[1:]) >= apart
