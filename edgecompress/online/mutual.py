"""Deep mutual learning between two machines (Zhang et al. 2018), exact or with a stated staleness.

With staleness 0 each end says the logits of a step's own forward pass, in training mode, and waits
for the other's: what one process does that trains both. With staleness W > 0 it says, at each step,
what its network as it is then makes of the batch W steps ahead, in evaluation mode and by a forward
pass of its own. The way between the ends is hidden behind W steps; a step learns from logits that
are W steps old. The first W batches are said by the networks as they begin.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgecompress.data import DataSet
from edgecompress.methods.distill import kl_divergence
from edgecompress.online.plan import Plan
from edgecompress.train.batches import Batch, compact
from edgecompress.train.fit import Kept, Onlooker


class Mutual(Onlooker):
    """One end: the loss of its training, and a `Companion` of it.

    `say(step, logits)` brings logits (B, K) float32 to the others, `hear(step)` waits for theirs.
    The loss is cross-entropy + the mean over the others of KL(softmax(other) || softmax(own)) at T
    = 1. The training begins after step `start`.
    """

    def __init__(
        self,
        plan: Plan,
        data: DataSet,
        say: Callable[[int, Tensor], None],
        hear: Callable[[int], Sequence[Tensor]],
        start: int = 0,
    ) -> None:
        self.plan, self.data, self.say, self.hear, self.step = plan, data, say, hear, start
        self._said: dict[int, Tensor] = {}
        self._model: nn.Module | None = None

    def __call__(self, logits: Tensor, batch: Batch) -> Tensor:
        """The loss of the next step, whose batch the network has just read."""
        self.step += 1
        if self.plan.staleness == 0:
            self.say(self.step, logits.detach())
        elif self.step + self.plan.staleness <= self.plan.steps:
            self._say_ahead(self.step + self.plan.staleness)
        self._said.pop(self.step, None)
        others = self.hear(self.step)
        own = F.cross_entropy(logits, batch.labels)
        return own + torch.stack([kl_divergence(logits, other, 1.0) for other in others]).mean()

    def attach(self, model: nn.Module) -> None:
        """The network of the epoch that begins; before the first step of all, the first batches are
        said.
        """
        first, self._model = self._model is None, model
        if first:
            for step in range(
                self.step + 1, min(self.step + self.plan.staleness, self.plan.steps) + 1
            ):
                self._say_ahead(step)

    def _say_ahead(self, step: int) -> None:
        """Say a batch that comes later; one that was said before a break is said again as it
        was.
        """
        if step not in self._said:
            self._said[step] = self._forward(step)
        self.say(step, self._said[step])

    def _forward(self, step: int) -> Tensor:
        if self._model is None:
            raise ValueError("a batch is said before there is a network: attach it first")
        modes = [(module, module.training) for module in self._model.modules()]
        _, pixels = self.plan.pixels(self.data, step)
        self._model.eval()
        with torch.no_grad():
            logits: Tensor = self._model(compact(self.data.preprocess(pixels))).float()
        for module, mode in modes:
            module.training = mode
        return logits

    def kept(self) -> Kept:
        """What was said of steps to come."""
        return {"said": {step: logits.clone() for step, logits in self._said.items()}}

    def take(self, kept: Kept) -> None:
        """Say it again when the training goes on."""
        self._said = dict(kept["said"])
