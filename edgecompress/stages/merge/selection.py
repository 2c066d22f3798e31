"""Do gates select? The same wide network, cut to the same size by other choices, without any
training.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edgecompress.core import ChannelGraph, shrink
from edgecompress.errors import UsageError
from edgecompress.methods import scores as scoring
from edgecompress.methods.gates import GroupStatistics, most_open
from edgecompress.methods.scores import Scores
from edgecompress.proportions import apart
from edgecompress.run.context import Context
from edgecompress.run.sections import MergeStep, SelectionRow
from edgecompress.stages.common import validation_outputs
from edgecompress.stages.prune.work import score
from edgecompress.stages.scoring import paired
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
    chosen: nn.Module,
) -> list[SelectionRow]:
    """Validation of `wide`, the network with its gates folded in, cut to `share` of each group of
    `graph`, its trace: `chosen` by the gates, and by each other choice, on the same images.
    """
    task, targets = context.data.task, context.data.targets(context.data.validation)
    by_gates = validation_outputs(context, chosen)

    def outputs(scores: Scores) -> Tensor:
        """Of the network that these scores choose, on validation (N, K)."""
        small = shrink(wide.cpu(), most_open(scores, share)).to(context.device)
        reestimate_(small, context.data, context.device)
        return validation_outputs(context, small)

    def row(choice: str, scores: Scores) -> SelectionRow:
        predicted = outputs(scores)
        row: SelectionRow = {"choice": choice, "accuracy": task.score(predicted, targets)}
        if (pair := paired(task, by_gates, predicted, targets)) is not None:
            row["against_gates"] = pair.as_dict()
        return row

    seeds = range(context.seed, context.seed + RANDOM)
    drawn = [task.score(outputs(scoring.random(graph, seed)), targets) for seed in seeds]
    rows: list[SelectionRow] = [
        {"choice": "gates", "accuracy": task.score(by_gates, targets)},
        {"choice": "random", "accuracy": statistics.fmean(drawn), "draws": drawn},
    ]
    if settings.heads == "average":
        rows.append(row("first parent", in_order(graph)))
    named = _criteria(context, settings, wide, graph)
    return [*rows, *(row(name, scores) for name, scores in named)]


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


def against(row: SelectionRow) -> str:
    """The accuracy of a choice, and its difference to that of the gates on the same images, or its
    draws: `97.77%, +0.28 points (-0.27 to +0.83)`.
    """
    text = f"{row['accuracy']:.2%}"
    if "draws" in row:
        draws = row["draws"]
        return f"{text}, mean of {len(draws)} ({100 * min(draws):.2f} to {100 * max(draws):.2f})"
    if "against_gates" in row:
        pair = row["against_gates"]
        return f"{text}, {apart(pair['difference'], pair['ci95'])}"
    return text


def remarks(step: MergeStep) -> Iterator[str]:
    """What a reader should know of a cut: how it compares, and whether gates chose it."""
    words = "; ".join(f"{row['choice']} {against(row)}" for row in step["selection"])
    yield f"validation after the cut, by choice (points: against the gates): {words}"
    if not step["decided"]:
        yield (
            f"the gates did not decide (entropy {step['entropy']:.2f} bits, agreement with the cut "
            f"{step['agreement']:.1%}): the cut ranks gates that are open; give more epochs, or a "
            "larger --lambda-scale"
        )
