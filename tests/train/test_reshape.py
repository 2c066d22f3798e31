"""A cut slices the optimizer's moments as it slices the weights."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecompress.core import shrink
from edgecompress.train.optimizers import make_optimizer
from edgecompress.train.reshape import carry_optimizer, carry_picked
from edgecompress.train.settings import FitSettings
from tests.networks import graph_of, narrow, random_keep


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


def test_single_parameters_take_their_moments_with_them() -> None:
    old, new = torch.nn.Parameter(torch.ones(2, 3)), torch.nn.Parameter(torch.ones(2, 2))
    optimizer, fresh = torch.optim.Adam([old]), torch.optim.Adam([new])
    old.grad = torch.arange(6.0).reshape(2, 3)
    optimizer.step()
    carry_picked(optimizer, fresh, [(old, new, lambda moment: moment[:, 1:])])
    before, after = optimizer.state[old], fresh.state[new]
    assert torch.equal(after["exp_avg"], before["exp_avg"][:, 1:])
    assert torch.equal(after["exp_avg_sq"], before["exp_avg_sq"][:, 1:])
    assert float(after["step"]) == 1
    assert after["step"] is not before["step"]


def test_a_parameter_without_state_has_none_afterwards() -> None:
    old, new = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(1))
    fresh = torch.optim.Adam([new])
    carry_picked(torch.optim.Adam([old]), fresh, [(old, new, lambda moment: moment[:1])])
    assert not fresh.state
