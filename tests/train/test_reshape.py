"""A cut slices the optimizer's moments as it slices the weights."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecompress.core import shrink
from edgecompress.data import load_data
from edgecompress.train.fit import Hooks, fit, label_loss, make_optimizer
from edgecompress.train.reshape import carry_optimizer
from edgecompress.train.settings import FitSettings
from tests.networks import graph_of, narrow, random_keep

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "name", ["vgg16_bn", "resnet20", "densenet121", "mobilenet_v2", "functional"]
)
@settings(max_examples=4)
@given(seed=st.integers(0, 1000), kind=st.sampled_from(["adamw", "sgd"]))
def test_moments_are_cut_where_the_weights_are(name: str, seed: int, kind: str) -> None:
    """Every moment is set to its weight: after the cut it still equals its (smaller) weight."""
    model, keep = narrow(name, seed), random_keep(graph_of(name).groups, seed, 0.6)
    chosen = FitSettings(1, optimizer=kind)
    old = make_optimizer(model, chosen)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    old.step()
    for parameter, state in old.state.items():
        for key, value in state.items():
            if value.shape == parameter.shape:
                state[key] = parameter.detach().clone()
    small = shrink(model, keep)
    fresh = make_optimizer(small, chosen)
    carry_optimizer(old, fresh, model, small, keep)
    checked = 0
    for parameter in small.parameters():
        state = fresh.state[parameter]
        for key, value in state.items():
            if value.shape == parameter.shape:
                assert torch.equal(value, parameter), key
                checked += 1
            else:
                assert key == "step" and float(value) == 1
    assert checked >= len(list(small.parameters()))
    for parameter in small.parameters():
        parameter.grad = torch.randn_like(parameter)
    fresh.step()


def test_training_goes_on_after_cuts_and_chooses_an_eligible_epoch() -> None:
    data, model = load_data("digits"), narrow("vgg16_bn", 0).float()
    model.classifier[-1] = torch.nn.Linear(10, 10)
    from edgecompress.core import trace

    full = sum(p.numel() for p in model.parameters())

    def cut(network: torch.nn.Module, epoch: int) -> dict[object, torch.Tensor] | None:
        groups = trace(network, torch.zeros(1, 3, 32, 32)).groups
        return (
            {g: torch.arange(g.size) < max(2, g.size - 1) for g in groups}
            if epoch in (1, 2)
            else None
        )

    result = fit(
        model,
        data,
        label_loss,
        FitSettings(4, batch_size=128, learning_rate=1e-3),
        seed=0,
        device=CPU,
        hooks=Hooks(
            cut=cut, eligible=lambda m: sum(p.numel() for p in m.parameters()) < 0.8 * full
        ),
    )
    assert [row.cut > 0 for row in result.history] == [True, True, False, False]
    assert [row.params for row in result.history] == sorted(
        (row.params for row in result.history), reverse=True
    )
    assert result.eligible and result.best_epoch >= 2
    assert sum(p.numel() for p in result.model.parameters()) < 0.8 * full
    small = sum(p.numel() for p in model.parameters())
    assert small == full, "the network that was given keeps its shape"


def test_no_eligible_epoch_is_said_and_patience_stops() -> None:
    data, model = load_data("digits"), narrow("student1", 0).float()
    model.classifier[-1] = torch.nn.Linear(100, 10)
    settings_ = FitSettings(3, batch_size=256, learning_rate=1e-9)
    result = fit(
        model,
        data,
        label_loss,
        settings_,
        seed=0,
        device=CPU,
        hooks=Hooks(eligible=lambda m: False),
    )
    assert not result.eligible and result.best_epoch == 3
    idle = FitSettings(9, batch_size=512, learning_rate=1e-12)
    assert (
        len(fit(model, data, label_loss, idle, seed=0, device=CPU, hooks=Hooks(patience=1)).history)
        < 9
    )
