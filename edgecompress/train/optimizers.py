"""Optimizers over groups of parameters with learning rates of their own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from edgecompress.train.settings import FitSettings

ParameterGroup = dict[str, Any]
"""`params`, options of the optimizer, and `factor`: its learning rate over that of the step."""

T = TypeVar("T", bound=Tensor)


def make_optimizer(
    model: nn.Module, settings: FitSettings, more: Iterable[nn.Parameter] = ()
) -> torch.optim.Optimizer:
    """AdamW, Adam, or SGD with momentum 0.9, over the parameters of `model` and `more` that require
    gradients.
    """
    groups = _parameter_groups(model, settings, more)
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            groups,
            lr=rate,
            momentum=0.9,
            nesterov=settings.nesterov,
            weight_decay=decay,
            fused=True,
        )
    kind = torch.optim.Adam if settings.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, lr=rate, weight_decay=decay, fused=True)


def set_rate_(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every parameter group to `rate` times its factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]


def split_by_prefix(
    named: Mapping[str, T], prefixes: Sequence[tuple[str, float]]
) -> tuple[list[T], list[tuple[float, list[T]]]]:
    """(parameters that no prefix matches, (factor, parameters) of each (prefix, factor))."""
    taken: set[str] = set()
    groups: list[tuple[float, list[T]]] = []
    for prefix, factor in prefixes:
        names = [name for name in named if name.startswith(prefix)]
        taken.update(names)
        groups.append((factor, [named[name] for name in names]))
    rest = [parameter for name, parameter in named.items() if name not in taken]
    return rest, groups


def _parameter_groups(
    model: nn.Module, settings: FitSettings, more: Iterable[nn.Parameter]
) -> list[ParameterGroup]:
    """One group for each prefix in `settings.faster`, without weight decay, one for biases and
    normalisations where they are treated differently, and one for the rest.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    rest, faster = split_by_prefix(named, settings.faster)
    rest += [p for p in more if p.requires_grad]
    groups: list[ParameterGroup] = [
        {
            "params": parameters,
            "factor": factor,
            "lr": settings.learning_rate * factor,
            "weight_decay": 0.0,
        }
        for factor, parameters in faster
    ]
    if settings.bias_rate == 1 and settings.norm_decay:
        return [{"params": rest, "factor": 1.0}, *groups]
    biases = {id(p) for name, p in named.items() if p.dim() == 1 and name.endswith("bias")}
    vectors = {id(p) for p in rest if p.dim() == 1}
    decay = settings.weight_decay if settings.norm_decay else 0.0
    of_biases = {"lr": settings.learning_rate * settings.bias_rate, "factor": settings.bias_rate}
    return [
        {"params": [p for p in rest if id(p) not in vectors], "factor": 1.0},
        {
            "params": [p for p in rest if id(p) in vectors - biases],
            "factor": 1.0,
            "weight_decay": decay,
        },
        # a faster rate decays no faster
        {
            "params": [p for p in rest if id(p) in biases],
            **of_biases,
            "weight_decay": decay / settings.bias_rate,
        },
        *groups,
    ]
