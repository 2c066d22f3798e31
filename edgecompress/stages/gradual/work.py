"""Train and prune at once: the cuts, planned over the epochs, as hooks of the training loop."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edgecompress.core import ChannelGraph
from edgecompress.core.proof import trace
from edgecompress.core.select import Budget, floor_of, pricer, top, top_overall, uniform
from edgecompress.core.shrink import Keep
from edgecompress.methods.gradual import (
    CutPlan,
    DynamicShares,
    Shares,
    layer_shares,
    plan_cuts,
    static_shares,
    strength_for,
)
from edgecompress.methods.repair import repaired
from edgecompress.run.context import Context, TrainingContext
from edgecompress.run.sections import GradualSection
from edgecompress.run.stage import StageResult
from edgecompress.run.state import SizePlan, StageRow, State
from edgecompress.stages.budgets import (
    budgets_of,
    first_sizes,
    meets,
    only_layers,
    plan_for_amount,
)
from edgecompress.stages.candidates import FileBytes, file_bytes
from edgecompress.stages.common import count, learning_loss, validation_accuracy, watched
from edgecompress.stages.frozen import with_frozen
from edgecompress.stages.prune.work import repair_images, score
from edgecompress.stages.training import fit_settings, train_model
from edgecompress.train.fit import FitResult, Hooks, Loss
from edgecompress.train.settings import FitSettings

if TYPE_CHECKING:
    from edgecompress.stages.gradual import GradualStage

AMOUNT_NOT_MET = "no epoch met the amount: give more epochs, a larger step or an earlier schedule"
"""Why a network that was cut while it trained may be larger than requested."""


@dataclass(frozen=True)
class Shrinking:
    """How one network is cut while it trains: the hooks for the loop, the cuts planned, the share
    of channels that each group keeps, and the widths before the first cut.
    """

    hooks: Hooks
    cuts: CutPlan
    shares: Shares
    before: dict[str, int]

    def report(self, result: FitResult) -> GradualSection:
        """What `result.json` has of it."""
        return {
            "shares": {name: round(share, 6) for name, share in self.shares.items()},
            "left_alone": dict(self.cuts.left_alone),
            "cuts": [{"epoch": c.epoch, "widths": dict(c.widths)} for c in self.cuts.cuts],
            "chosen_epoch": result.best_epoch,
            "met": result.eligible,
        }


def shrinking(
    context: Context, settings: GradualStage, model: nn.Module, loss: Loss, epochs: int, text: str
) -> Shrinking:
    """Plan the cuts of a stage; `text` names its training on the progress bar."""
    hooks = watched(context, text, settings.patience)
    in_fp32 = partial(file_bytes, context, "fp32")
    planned = plan_shrinking(context, settings, model, loss, epochs, in_fp32, hooks)
    for name, reason in planned.cuts.left_alone.items():
        context.reporter.note(f"{name}: {reason}")
    return planned


def plan_shrinking(
    context: TrainingContext,
    settings: GradualStage,
    model: nn.Module,
    loss: Loss,
    epochs: int,
    fp32_bytes: FileBytes,
    hooks: Hooks,
) -> Shrinking:
    """Plan the cuts that `settings` ask for over a training of `epochs` epochs with `loss` and
    `hooks`; `fp32_bytes` counts the file of a network. Raises `UsageError` for an amount that
    cannot be read, or layers that do not exist.
    """
    graph = trace(model, context.example)
    plan = None
    if settings.amount is not None:
        plan = plan_for_amount(model, graph, settings.amount, settings.floor, 1, fp32_bytes)
    shares = final_shares(model, graph, settings, plan)
    cuts = plan_cuts(
        graph.groups,
        shares,
        settings.schedule,
        epochs,
        step=settings.step,
        floor=settings.floor,
    )
    before = {g.name: g.size for g in graph.groups}
    images = repair_images(context)
    hooks = replace(
        hooks,
        cut=Cutter(context, settings, plan, cuts, before, loss),
        mend=lambda old, small, keep: repaired(old, small, keep, images),
        eligible=Eligible(plan, cuts, context.example, fp32_bytes),
    )
    return Shrinking(hooks, cuts, shares, before)


def gradual(context: Context, settings: GradualStage, state: State) -> StageResult:
    """Train a copy of the network while it is cut; the epoch chosen is the best one that meets the
    amount.
    """
    model = copy.deepcopy(state.need_model()).to(context.device)
    state = with_frozen(context, state, model, trace(model, context.example))
    params = count(model)
    chosen = fit_settings(context, model, settings)
    loss = learning_loss(context, state, chosen, settings.temperature, settings.alpha)
    planned = shrinking(context, settings, model, loss, chosen.epochs, "train and prune")
    if settings.control:
        state = _with_control(context, state, copy.deepcopy(model), loss, chosen)
    result = train_model(context, model, loss, chosen, planned.hooks)
    small = result.model.cpu()

    cuts = f"{len(planned.cuts.cuts)} cut(s)"
    note = f"{cuts}; epoch {result.best_epoch} chosen; {params} parameters before"
    accuracy = validation_accuracy(context, small)
    row = StageRow("gradual", accuracy, count(small), wall_s=seconds(result), note=note)
    state = state.with_model(small.cpu()).with_history("gradual", result).with_row(row)
    state = state.with_section("gradual", planned.report(result))
    widths = widths_now(context, state, small, planned.before)
    unmet = () if result.eligible else (AMOUNT_NOT_MET,)
    return StageResult(replace(state, widths=widths), missed=unmet)


def widths_now(
    context: Context, state: State, small: nn.Module, before: dict[str, int]
) -> dict[str, tuple[int, int]]:
    """(channels before the run's first cut, channels now) of each group of a network whose groups
    had `before` channels.
    """
    kept = {g.name: g.size for g in trace(small, context.example).groups}
    first = first_sizes(state)
    return {name: (first.get(name, size), kept.get(name, size)) for name, size in before.items()}


def _with_control(
    context: Context, state: State, model: nn.Module, loss: Loss, chosen: FitSettings
) -> State:
    """The state with the epochs of the same network, data, seed and settings without cuts: what
    pruning is compared with.
    """
    result = train_model(context, model, loss, chosen, watched(context, "train without cuts"))
    best = result.best.validation_accuracy
    row = StageRow("unpruned (control)", best, count(model), wall_s=seconds(result))
    return state.with_history("unpruned", result).with_row(row)


def seconds(result: FitResult) -> float:
    """Seconds that all epochs of a training took."""
    return round(sum(row.seconds for row in result.history), 3)


def final_shares(
    model: nn.Module, graph: ChannelGraph, settings: GradualStage, plan: SizePlan | None
) -> Shares:
    """The share of its channels that each group keeps in the end, so that the network meets `plan`
    (or as the recipe names them).
    """
    if isinstance(settings.shares, dict):
        return layer_shares(graph, settings.shares)
    if plan is None:
        return {}
    only = only_layers(graph, settings.layers)
    limits = [_with_margin(b, plan) for b in budgets_of(model, graph, plan)]
    prices = [pricer(model, graph, b.price) for b in limits]
    dynamic = DynamicShares(model, graph) if settings.shares == "dynamic" else None

    def at(strength: float) -> Shares:
        if dynamic is not None:
            shares = dynamic(strength * 0.95)
        else:
            shares = static_shares(graph.groups, strength)
        if only is None:
            return shares
        return {name: share for name, share in shares.items() if name in only}

    def over(shares: Shares) -> float:
        kept = [
            max(floor_of(g.size, settings.floor, 1), round(g.size * shares.get(g.name, 1.0)))
            for g in graph.groups
        ]
        widths = [float(min(k, g.size)) for k, g in zip(kept, graph.groups, strict=True)]
        at_widths = torch.tensor(widths, dtype=torch.float64)
        costs = [price.cost(at_widths) for price in prices]
        return max(c / max(b.limit, 1e-9) for c, b in zip(costs, limits, strict=True))

    return at(strength_for(at, over, 1.0))


def _with_margin(budget: Budget, plan: SizePlan) -> Budget:
    """A byte budget with 1 % to spare: the price is an estimate of the file, which is measured when
    it is done.
    """
    if plan.bytes is None or budget.limit != plan.bytes:
        return budget
    return Budget(budget.price, budget.limit * 0.99)


class Eligible:
    """May an epoch be chosen? Its network meets the amount; without one, it has had every cut."""

    def __init__(
        self, plan: SizePlan | None, cuts: CutPlan, example: Tensor, fp32_bytes: FileBytes
    ) -> None:
        self.plan, self.cuts = plan, cuts
        self.example, self.fp32_bytes = example, fp32_bytes
        self._known: dict[tuple[torch.Size, ...], bool] = {}

    def __call__(self, model: nn.Module) -> bool:
        """True for the network that an eligible epoch left."""
        widths = tuple(parameter.shape for parameter in model.parameters())
        if widths not in self._known:
            self._known[widths] = self._decide(model)
        return self._known[widths]

    def _decide(self, model: nn.Module) -> bool:
        if self.plan is not None:
            return meets(model, self.plan, self.example, self.fp32_bytes)
        last: dict[str, int] = {}
        for cut in self.cuts.cuts:
            last |= cut.widths
        groups = trace(model, self.example).groups
        return all(last.get(g.name, g.size) >= g.size for g in groups)


class Cutter:
    """The hook of the training loop that chooses what is removed after an epoch."""

    def __init__(
        self,
        context: TrainingContext,
        settings: GradualStage,
        plan: SizePlan | None,
        cuts: CutPlan,
        sizes: dict[str, int],
        loss: Loss,
    ) -> None:
        self.context = context
        self.settings = settings
        self.loss = loss
        self.plan = plan
        self.cuts = cuts
        self.sizes = sizes
        self.floors = {name: floor_of(size, settings.floor, 1) for name, size in sizes.items()}

    def __call__(self, model: nn.Module, epoch: int) -> Keep | None:
        """Masks for the cut after `epoch`; None where there is none."""
        cut = self.cuts.at(epoch)
        if cut is None:
            return None
        settings = self.settings
        graph = trace(model, self.context.example)
        scores = score(
            self.context,
            model,
            graph,
            settings,
            settings.criterion,
            self.loss,
            settings.score_batches,
        )
        if settings.scope == "local":
            return top(scores, cut.widths)
        if self.plan is None or cut is not self.cuts.cuts[-1]:
            return top_overall(scores, cut.widths, self.floors)
        only = None if settings.layers is None else frozenset(cut.widths)
        limits = tuple(_with_margin(b, self.plan) for b in budgets_of(model, graph, self.plan))
        selection = uniform(
            model,
            graph,
            scores,
            limits,
            "global",
            floor=settings.floor,
            sizes=self.sizes,
            only=only,
        )
        return selection.keep
