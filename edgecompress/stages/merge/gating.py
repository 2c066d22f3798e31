"""The wide network and its gates, trained together."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor, nn

from edgecompress.core.proof import trace
from edgecompress.methods.gates import SOURCE_RATE, Gated, fitted_rate, lambdas
from edgecompress.run.context import Context
from edgecompress.stages.common import watched
from edgecompress.stages.training import fit_settings, train_model
from edgecompress.train.batches import Batch
from edgecompress.train.fit import FitResult, smoothed
from edgecompress.train.history import EpochRow

if TYPE_CHECKING:
    from edgecompress.stages.merge import MergeStage


def train_gates(
    context: Context, settings: MergeStage, wide: nn.Module, share: float
) -> tuple[Gated, Penalty, FitResult]:
    """The wide network with its gates, trained together; gates settle at the end, so the last epoch
    is the result.
    """
    graph = trace(wide, context.example)
    gated = Gated(wide, graph, per=settings.draw, noise=settings.noise, seed=context.seed)
    chosen = fit_settings(context, wide, settings)
    rate = settings.gate_rate or SOURCE_RATE
    if settings.gate_rate is None and settings.lambda_schedule == "fitted":
        steps = chosen.epochs * -(-len(context.data.train) // chosen.batch_size)
        rate = fitted_rate(steps, chosen.learning_rate)
    chosen = replace(chosen, faster=(("log_alpha", rate),))
    penalty = Penalty(gated.to(context.device), share, settings, chosen.epochs)
    hooks = watched(context, "merge")
    log = hooks.on_epoch

    def on_epoch(row: EpochRow) -> None:
        penalty.epoch_done()
        if log is not None:
            log(row)

    hooks = replace(hooks, eligible=lambda _: False, on_epoch=on_epoch)
    result = train_model(context, gated, penalty, chosen, hooks)
    return gated.cpu().eval(), penalty, result


class Penalty:
    """Cross-entropy + lambda * the distance of the gates' mean openness from the share, lambda by
    epoch.
    """

    def __init__(self, gated: Gated, share: float, settings: MergeStage, epochs: int) -> None:
        self.gated, self.share = gated, share
        self.base = smoothed(settings.label_smoothing)
        self.weights = weights_of_l0(settings, epochs)
        self.epoch = 0
        self.last = float("nan")

    def __call__(self, logits: Tensor, batch: Batch) -> Tensor:
        """The loss of `logits` (B, K), a scalar."""
        weight = self.weights[min(self.epoch, len(self.weights) - 1)]
        return self.base(logits, batch) + weight * self.gated.distance(self.share)

    def epoch_done(self) -> None:
        """The next epoch has the next lambda."""
        self.epoch += 1
        self.last = float(self.gated.distance(self.share).detach())


def weights_of_l0(settings: MergeStage, epochs: int) -> list[float]:
    """The weight of the L0 loss in each epoch."""
    schedule = lambdas(settings.lambda_schedule, max(1, epochs), settings.lambda_start)
    return [settings.lambda_scale * weight for weight in schedule]
