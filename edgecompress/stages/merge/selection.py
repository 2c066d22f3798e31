"""Do gates select? The same wide network, cut to the same size by other choices, without any
training.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from edgecompress.core import ChannelGraph, shrink
from edgecompress.errors import UsageError
from edgecompress.methods import scores as scoring
from edgecompress.methods.gates import GroupStatistics, most_open
from edgecompress.methods.scores import Scores
from edgecompress.run.context import Context
from edgecompress.run.sections import MergeStep, SelectionRow
from edgecompress.stages.common import validation_accuracy
from edgecompress.stages.prune.work import score
from edgecompress.train.fit import smoothed
from edgecompress.train.statistics import reestimate_

if TYPE_CHECKING:
    from edgecompress.stages.merge import MergeStage

RANDOM = 5
"""Random choices, whose mean is compared."""
CRITERIA = ("l1", "bn", "taylor")
DECIDED_BITS, DECIDED_AGREEMENT = 0.1, 0.99
"""Gates have decided below this mean entropy, and above this share of channels that the cut keeps
because they are open and drops because they are closed.
"""


def selection(
    context: Context,
    settings: MergeStage,
    wide: nn.Module,
    graph: ChannelGraph,
    share: float,
    chosen: float,
) -> list[SelectionRow]:
    """Validation of `wide`, the network with its gates folded in, cut to `share` of each group of
    `graph`, its trace: `chosen` by the gates, and by each other choice.
    """

    def accuracy(scores: Scores) -> float:
        small = shrink(wide.cpu(), most_open(scores, share)).to(context.device)
        reestimate_(small, context.data, context.device)
        return validation_accuracy(context, small)

    seeds = range(context.seed, context.seed + RANDOM)
    drawn = [accuracy(scoring.random(graph, seed)) for seed in seeds]
    rows: list[SelectionRow] = [
        {"choice": "gates", "accuracy": chosen},
        {"choice": "random", "accuracy": statistics.fmean(drawn), "draws": drawn},
    ]
    if settings.heads == "average":
        rows.append({"choice": "first parent", "accuracy": accuracy(in_order(graph))})
    named = _criteria(context, settings, wide, graph)
    for name, found in named:
        rows.append({"choice": name, "accuracy": accuracy(found)})
    return rows


def in_order(graph: ChannelGraph) -> Scores:
    """Scores by which the first channels are kept: those of the first network of a stack."""
    return {g: torch.arange(g.size, 0, -1, dtype=torch.float64) for g in graph.groups}


def _criteria(
    context: Context, settings: MergeStage, wide: nn.Module, graph: ChannelGraph
) -> Iterator[tuple[str, Scores]]:
    loss = smoothed(settings.label_smoothing)
    for criterion in CRITERIA:
        try:
            model = wide.to(context.device)
            yield criterion, score(context, model, graph, settings, criterion, loss)
        except UsageError:  # a network without BatchNorm has no scales
            continue


def decision(rows: Sequence[GroupStatistics]) -> MergeStep:
    """Whether the gates of all groups have decided, and the means that say so, over channels."""
    total = sum(row.size for row in rows)
    entropy = sum(row.entropy * row.size for row in rows) / total
    agreement = sum(row.agreement * row.size for row in rows) / total
    decided = entropy < DECIDED_BITS and agreement > DECIDED_AGREEMENT
    return {"decided": decided, "entropy": entropy, "agreement": agreement}


def remarks(step: MergeStep) -> Iterator[str]:
    """What a reader should know of a cut: how it compares, and whether gates chose it."""
    words = (f"{row['choice']} {row['accuracy']:.2%}" for row in step["selection"])
    yield f"validation after the cut, by choice: {', '.join(words)} (random: mean of {RANDOM})"
    if not step["decided"]:
        yield (
            f"the gates did not decide (entropy {step['entropy']:.2f} bits, agreement with the cut "
            f"{step['agreement']:.1%}): the cut ranks gates that are open; give more epochs, or a "
            "larger --lambda-scale"
        )
