"""Deep mutual learning between machines (Zhang et al. 2018), exact or with a known staleness: what
each end publishes, and the source of what it learns from. The loss is `methods.distill.mutual`.

With staleness 0 each end publishes the logits of a step's own forward pass, in training mode, and
waits for the other's: what one process computes that trains both. With staleness W > 0 it
publishes, at each step, the logits of the batch W steps ahead, computed by its current network in
evaluation mode and in a forward pass of their own. The delay between the ends is hidden behind W
steps; a step learns from logits that are W steps old. The logits of the first W batches are those
of the initial networks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from edgecompress.data import DataSet
from edgecompress.online.plan import Plan
from edgecompress.train.batches import Batch
from edgecompress.train.fit import Kept, Loss, Onlooker
from edgecompress.train.modes import outputs_of


class Clock(Protocol):
    """Whatever counts the steps of a training."""

    @property
    def step(self) -> int:
        """The current step, from 1; 0 before the first."""


@dataclass(frozen=True)
class RemotePeer:
    """A source: the network that trains on the same batches on another machine. `receive(step)`
    waits for its logits (B, K) of a step, that of the `clock`.
    """

    clock: Clock
    receive: Callable[[int], Tensor]

    def logits(self, batch: Batch) -> Tensor:
        """The peer's logits (B, K) of the current step, whose batch is `batch`."""
        return self.receive(self.clock.step)


class Publisher(Onlooker):
    """Publishes a network's logits while it trains: a `Companion` of that training, and `before`
    its loss.

    `send(step, logits)` sends logits (B, K) float32 to the peers. The training begins after step
    `start`.
    """

    def __init__(
        self,
        plan: Plan,
        data: DataSet,
        send: Callable[[int, Tensor], None],
        start: int = 0,
    ) -> None:
        self.plan = plan
        self.data = data
        self.send = send
        self.step = start
        self._ahead: dict[int, Tensor] = {}
        """The logits that were sent for steps to come."""
        self._model: nn.Module | None = None

    def before(self, loss: Loss) -> Loss:
        """`loss`, before which each step publishes."""

        def published(logits: Tensor, batch: Batch) -> Tensor:
            self.publish(logits.detach())
            return loss(logits, batch)

        return published

    def publish(self, logits: Tensor) -> None:
        """Begin the next step, whose own forward pass gave `logits` (B, K): publish these or, with
        a staleness, those of a later step.
        """
        self.step += 1
        later = self.step + self.plan.staleness
        if later == self.step:
            self.send(self.step, logits)
        elif later <= self.plan.steps:
            self._send_ahead(later)
        self._ahead.pop(self.step, None)

    def attach(self, model: nn.Module) -> None:
        """Take the network of the epoch that begins; before the first step of all, send the logits
        of the first batches.
        """
        first = self._model is None
        self._model = model
        if first:
            last = min(self.step + self.plan.staleness, self.plan.steps)
            for step in range(self.step + 1, last + 1):
                self._send_ahead(step)

    def _send_ahead(self, step: int) -> None:
        """Send the logits of a later step; after a break the same that were sent before it."""
        if step not in self._ahead:
            self._ahead[step] = self._forward(step)
        self.send(step, self._ahead[step])

    def _forward(self, step: int) -> Tensor:
        """Logits (B, K) of the batch of `step`, in evaluation mode."""
        if self._model is None:
            raise ValueError("logits are needed before there is a network: attach it first")
        modes = [(module, module.training) for module in self._model.modules()]
        _, pixels = self.plan.pixels(self.data, step)

        self._model.eval()
        with torch.no_grad():
            logits: Tensor = outputs_of(self._model, self.data.preprocess(pixels)).float()
        for module, mode in modes:
            module.training = mode
        return logits

    def kept(self) -> Kept:
        """The logits that were sent for steps to come."""
        return {"ahead": {step: logits.clone() for step, logits in self._ahead.items()}}

    def take(self, kept: Kept) -> None:
        """Restore them."""
        self._ahead = dict(kept["ahead"])
