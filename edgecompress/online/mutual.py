"""Deep mutual learning between two machines (Zhang et al. 2018), exact or with a known staleness.

With staleness 0 each end sends the logits of a step's own forward pass, in training mode, and waits
for the other's: what one process computes that trains both. With staleness W > 0 it sends, at each
step, the logits of the batch W steps ahead, computed by its current network in evaluation mode and
in a forward pass of their own. The delay between the ends is hidden behind W steps; a step learns
from logits that are W steps old. The logits of the first W batches are those of the initial
networks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from edgecompress.data import DataSet
from edgecompress.methods.distill import mutual
from edgecompress.online.plan import Plan
from edgecompress.train.batches import Batch, compact
from edgecompress.train.fit import Kept, Onlooker


class Mutual(Onlooker):
    """One end: the loss of its training, and a `Companion` of it.

    `send(step, logits)` sends logits (B, K) float32 to the peers; `receive(step)` waits for theirs,
    one (B, K) per peer. The loss is the mean over the peers of the `mutual` loss. The training
    begins after step `start`.
    """

    def __init__(
        self,
        plan: Plan,
        data: DataSet,
        send: Callable[[int, Tensor], None],
        receive: Callable[[int], Sequence[Tensor]],
        start: int = 0,
    ) -> None:
        self.plan = plan
        self.data = data
        self.send = send
        self.receive = receive
        self.step = start
        self._ahead: dict[int, Tensor] = {}
        """The logits that were sent for steps to come."""
        self._model: nn.Module | None = None

    def __call__(self, logits: Tensor, batch: Batch) -> Tensor:
        """The loss of the next step, from the `logits` (B, K) of its batch."""
        self.step += 1
        later = self.step + self.plan.staleness
        if later == self.step:
            self.send(self.step, logits.detach())
        elif later <= self.plan.steps:
            self._send_ahead(later)
        self._ahead.pop(self.step, None)

        peers = {str(number): one for number, one in enumerate(self.receive(self.step))}
        joint = replace(batch, logits=peers)
        return torch.stack([mutual(name)(logits, joint) for name in peers]).mean()

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
            logits: Tensor = self._model(compact(self.data.preprocess(pixels))).float()
        for module, mode in modes:
            module.training = mode
        return logits

    def kept(self) -> Kept:
        """The logits that were sent for steps to come."""
        return {"ahead": {step: logits.clone() for step, logits in self._ahead.items()}}

    def take(self, kept: Kept) -> None:
        """Restore them."""
        self._ahead = dict(kept["ahead"])
