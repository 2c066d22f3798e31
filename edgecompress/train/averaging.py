"""Averaged weights: an exponential moving average that is validated and kept in place of the last
weights (Polyak and Juditsky 1992; as in Izmailov et al. 2018, the BatchNorms' statistics are those
of the averaged network).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TypedDict

import torch
from torch import Tensor, nn

EVERY = 8
"""Steps between two updates of the average at most; a short time constant has fewer."""
WHOLE = 0.25
"""Share of the time constant between two updates at most."""


class AveragedState(TypedDict):
    """The resumable state of an `Averaged`."""

    since: int
    values: dict[str, Tensor]


class Averaged:
    """The average of the parameters of `model` over a training of `steps` steps.

    Its time constant is `share` of the steps, so that the same setting fits short and long runs.
    Until so many steps have passed it is their plain mean, which forgets the first weights sooner.
    """

    def __init__(self, model: nn.Module, share: float, steps: int) -> None:
        self._share = share
        self._since = 0
        self.set_length(steps)
        self.values: dict[str, Tensor] = {}
        self.restart(model)

    def set_length(self, steps: int) -> None:
        """The training has so many steps."""
        self._steps = max(1.0, self._share * steps)
        self._every = max(1, min(EVERY, int(WHOLE * self._steps)))

    @torch.no_grad()
    def restart(self, model: nn.Module) -> None:
        """Begin again with the weights that `model` has: after a cut others are meant."""
        self._since = 0
        self.values = _copied(dict(model.named_parameters()))

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights of `model` after a step."""
        self._since += 1
        if self._since % self._every:
            return
        weight = self._every / min(self._steps, self._since)
        own = dict(model.named_parameters())
        learned = [name for name, p in own.items() if p.is_floating_point()]
        torch._foreach_lerp_(
            [self.values[name] for name in learned],
            [own[name].detach() for name in learned],
            min(1.0, weight),
        )

    @contextlib.contextmanager
    def in_place(self, model: nn.Module) -> Iterator[None]:
        """`model` holds the averaged weights inside the context, and its own ones again after."""
        own = _copied(dict(model.named_parameters()))
        _put(model, self.values)
        try:
            yield
        finally:
            _put(model, own)

    def put_into(self, model: nn.Module) -> None:
        """Replace the weights of `model` by the averaged ones."""
        _put(model, self.values)

    def state(self) -> AveragedState:
        """The state to resume from; it shares no memory with the training."""
        return {"since": self._since, "values": _copied(self.values)}

    def resume(self, state: AveragedState) -> None:
        """Continue from `state`."""
        self._since = state["since"]
        self.values = _copied(state["values"])


def _copied(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in values.items()}


@torch.no_grad()
def _put(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        parameter.copy_(values[name])
