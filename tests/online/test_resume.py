"""What `fit` saves decides the rest of a training: order, weights, moments, random numbers, cuts,
adapters, and the best epoch.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from edgecompress.data import DataSet
from edgecompress.lesson import Cutting
from edgecompress.methods.features import FeatureLoss, default_pairs
from edgecompress.train.fit import FitResult, Hooks, Kept, fit, label_loss
from tests.online.support import CPU, SETTINGS, STEPS, assert_same, network, pruning_hooks


def test_training_resumes_from_any_saved_step(data: DataSet) -> None:
    settings = replace(SETTINGS, dropout=0.3)

    def trained(seed: int, hooks: Hooks) -> FitResult:
        model = network("lenet5", data, seed)
        return fit(model, data, label_loss, settings, seed=5, device=CPU, hooks=hooks)

    states = list[Kept]()
    complete = trained(1, Hooks(keep=states.append, keep_every=1))
    assert [state["step"] for state in states] == list(range(1, STEPS + 1))
    for state in states:
        resumed = trained(8, Hooks(begin=state))
        assert_same(resumed.model, complete.model)
        assert [row.train_loss for row in resumed.history] == pytest.approx(
            [row.train_loss for row in complete.history]
        )
        assert [row.learning_rate for row in resumed.history] == [
            row.learning_rate for row in complete.history
        ]


def test_training_with_cuts_and_adapters_resumes_from_any_saved_step(data: DataSet) -> None:
    settings = replace(SETTINGS, epochs=3)
    teacher = network("lenet5", data, 1).eval()
    example = torch.zeros(1, *data.image_shape)

    def trained(hooks: Hooks) -> FitResult:
        model = network("lenet5", data, 1)
        torch.manual_seed(0)
        pairs = default_pairs(model, teacher, example, example)
        loss = FeatureLoss.of_pairs("hint", pairs, model, teacher, data.preprocess, label_loss)
        cutting = Cutting("50%", 0.3, "middle")
        cuts = pruning_hooks(model, data, cutting, settings)
        joined = replace(cuts, companion=loss, keep=hooks.keep, keep_every=3, begin=hooks.begin)
        return fit(model, data, loss, settings, seed=5, device=CPU, hooks=joined)

    states = list[Kept]()
    complete = trained(Hooks(keep=states.append))
    assert len({len(state["cuts"]) for state in states}) > 1, "cuts fell between saved steps"
    for state in states:
        resumed = trained(Hooks(begin=state))
        assert_same(resumed.model, complete.model)
        assert [row.params for row in resumed.history] == [row.params for row in complete.history]
