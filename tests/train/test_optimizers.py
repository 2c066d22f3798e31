"""Optimizers, and their parameter groups with learning rates of their own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgecompress.train.optimizers import make_optimizer, set_rate_, split_by_prefix
from edgecompress.train.settings import FitSettings


def two_layers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))


@pytest.mark.parametrize(
    ("name", "kind"),
    [("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam), ("sgd", torch.optim.SGD)],
)
def test_each_name_is_its_optimizer(name: str, kind: type) -> None:
    settings = FitSettings(1, optimizer=name, learning_rate=0.1, weight_decay=0.01)
    optimizer = make_optimizer(two_layers(), settings)
    assert type(optimizer) is kind
    assert (optimizer.defaults["lr"], optimizer.defaults["weight_decay"]) == (0.1, 0.01)
    if name == "sgd":
        assert (optimizer.defaults["momentum"], optimizer.defaults["nesterov"]) == (0.9, True)
        plain = make_optimizer(two_layers(), FitSettings(1, optimizer="sgd", nesterov=False))
        assert not plain.defaults["nesterov"]


def test_faster_parameters_have_their_own_rate_and_no_weight_decay() -> None:
    model = two_layers()
    settings = FitSettings(1, learning_rate=0.1, weight_decay=0.01, faster=(("1.", 10.0),))
    rest, faster = make_optimizer(model, settings).param_groups
    assert [id(p) for p in rest["params"]] == [id(p) for p in model[0].parameters()]
    assert [id(p) for p in faster["params"]] == [id(p) for p in model[1].parameters()]
    assert (rest["weight_decay"], faster["weight_decay"]) == (0.01, 0.0)
    assert (rest["lr"], faster["lr"]) == pytest.approx((0.1, 1.0))


def test_biases_and_normalisations_may_have_a_rate_and_no_decay_of_their_own() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, 2))
    names = {id(p): name for name, p in model.named_parameters()}

    def groups(**changes: float) -> dict[tuple[str, ...], tuple[float, float]]:
        settings = FitSettings(1, learning_rate=0.1, weight_decay=0.01, **changes)  # type: ignore[arg-type]
        return {
            tuple(sorted(names[id(p)] for p in group["params"])): (
                round(group["lr"], 6),
                round(group["lr"] * group["weight_decay"], 8),
            )
            for group in make_optimizer(model, settings).param_groups
        }

    weights, norms = ("0.weight", "2.weight"), ("1.weight",)
    biases = ("0.bias", "1.bias", "2.bias")
    assert groups(bias_rate=8) == {
        weights: (0.1, 0.001),
        norms: (0.1, 0.001),
        biases: (0.8, 0.001),  # a faster rate decays no faster
    }
    assert groups(norm_decay=False) == {
        weights: (0.1, 0.001),
        norms: (0.1, 0.0),
        biases: (0.1, 0.0),
    }


def test_the_rate_of_a_step_is_multiplied_by_each_groups_factor() -> None:
    optimizer = make_optimizer(two_layers(), FitSettings(1, faster=(("0.", 4.0),)))
    set_rate_(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 2.0]


def test_only_what_requires_a_gradient_is_optimised_and_companions_are() -> None:
    model, more = two_layers(), nn.Linear(1, 1)
    model[0].requires_grad_(False)
    more.bias.requires_grad_(False)
    (group,) = make_optimizer(model, FitSettings(1), more.parameters()).param_groups
    assert [id(p) for p in group["params"]] == [
        *(id(p) for p in model[1].parameters()),
        id(more.weight),
    ]


def test_parameters_are_split_by_the_prefix_of_their_names() -> None:
    named = {name: torch.zeros(1) for name in ("gate", "conv.weight", "conv.bias", "fc.weight")}
    rest, groups = split_by_prefix(named, [("conv.", 2.0), ("none", 3.0)])
    assert [id(p) for p in rest] == [id(named["gate"]), id(named["fc.weight"])]
    assert [(factor, len(parameters)) for factor, parameters in groups] == [(2.0, 2), (3.0, 0)]
