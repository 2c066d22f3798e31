"""Does merging help? Strategies with the same budget of epochs, repeated many times, and the
statistics of their results.

    student     two parents for a third of the budget each, merged with gates for a sixth,
                fine-tuned for a sixth
    bo3         the best of three networks, a third of the budget each, chosen on validation
    one         one network for the complete budget
    distilled   a network trained for a third on the mean of the outputs of the student's two
                parents, the same budget as the student

The student's parents are the first two of bo3's three, so these two are paired.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor, nn

from edgecompress.core import trace
from edgecompress.core.stack import stack
from edgecompress.data.sine import SineData
from edgecompress.errors import UsageError
from edgecompress.methods.gates import Gated, lambdas, most_open, open_probability
from edgecompress.models.small import Mlp
from edgecompress.train.many import ManySettings, Penalty, losses_of, train_many

STRATEGIES = ("student", "bo3", "one", "distilled")
DISTILLED_SHARE = 0.7
"""Weight of the parents' mean in strategy `distilled`; the labels have the rest."""

Pair = tuple[nn.Module, nn.Module]
"""The two parents of a student."""

FIRST_SEED = {
    "parents": 0,
    "finetune": 100_000,
    "distilled": 200_000,
    "one": 300_000,
    "merge": 400_000,
}
"""The seed of the first network of each phase; the phases of all runs use different seeds."""


# Statistics


class Comparison(TypedDict):
    """Two strategies compared: the name of the test, its two-sided p-value, and an effect size in
    -1..1, negative where the first is lower.
    """

    test: str
    p: float
    effect: float


class Compared(TypedDict):
    """The `summary` of every strategy, and the student compared with each of the others."""

    summary: dict[str, dict[str, float]]
    student_against: dict[str, Comparison]


def summary(values: Sequence[float]) -> dict[str, float]:
    """min, max, median, mean and standard deviation of the results of a strategy."""
    array = np.asarray(values, dtype=np.float64)
    return {
        "min": float(array.min()),
        "max": float(array.max()),
        "median": float(np.median(array)),
        "mean": float(array.mean()),
        "std": float(array.std(ddof=1)) if len(array) > 1 else 0.0,
    }


def versus(first: Sequence[float], second: Sequence[float], *, paired: bool = False) -> Comparison:
    """Compare the results of two strategies.

    Unpaired: the rank test of Mann and Whitney (1947); the effect is Cliff's delta (1993). Paired:
    the signed-rank test of Wilcoxon (1945); the effect is the matched-pairs rank-biserial
    correlation (Kerby 2014).
    """
    a = np.asarray(first, dtype=np.float64)
    b = np.asarray(second, dtype=np.float64)
    if paired:
        return _signed_ranks(a, b)
    test = stats.mannwhitneyu(a, b, alternative="two-sided")
    delta = 2 * test.statistic / (len(a) * len(b)) - 1
    # where all results are equal, some versions of SciPy say NaN
    p = 1.0 if np.isnan(test.pvalue) else float(test.pvalue)
    return {"test": "mann-whitney", "p": p, "effect": float(delta)}


def _signed_ranks(a: NDArray[np.float64], b: NDArray[np.float64]) -> Comparison:
    """`versus` for paired results (n,) each."""
    scale = float(max(np.abs(a).max(), np.abs(b).max())) or 1.0
    difference = np.round((a - b) / scale, 12)  # differences of as many images are ties
    nonzero = difference[difference != 0]
    if not len(nonzero):
        return {"test": "wilcoxon", "p": 1.0, "effect": 0.0}
    ranks = stats.rankdata(np.abs(nonzero))
    effect = (ranks * np.sign(nonzero)).sum() / ranks.sum()
    p = stats.wilcoxon(difference).pvalue
    return {"test": "wilcoxon", "p": float(p), "effect": float(effect)}


def compared(results: Mapping[str, Sequence[float]]) -> Compared:
    """The statistics of all strategies. bo3 and distilled share the student's parents, so they are
    paired with it.
    """
    others = [name for name in results if name != "student"]
    return {
        "summary": {name: summary(values) for name, values in results.items()},
        "student_against": {
            name: versus(results["student"], results[name], paired=name in ("bo3", "distilled"))
            for name in others
        },
    }


# The sine experiment


@dataclass(frozen=True)
class SineSetting:
    """The sine experiment: `budget` epochs per strategy, `repeats` results of each. Defaults are
    the source's values (Pašen 2022). Raises `UsageError` for a budget that is no multiple of 6.
    """

    budget: int = 900
    repeats: int = 50
    hidden: int = 100
    rate: float = 0.01
    batch_size: int = 32
    gate_factor: float = 10.0
    lambda_start: float = 0.05
    lambda_scale: float = 1.0
    lambda_schedule: str = "source"
    noise: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.budget % 6:
            raise UsageError(
                f"budget {self.budget} is not a multiple of 6: strategies train for thirds and "
                f"sixths of it; give e.g. {max(6, self.budget - self.budget % 6)}"
            )

    def seeds(self, phase: str, count: int) -> list[int]:
        """The seeds of `count` networks of `phase`, a key of `FIRST_SEED`."""
        first = self.seed * 1_000_000 + FIRST_SEED[phase]
        return list(range(first, first + count))


def sine_experiment(
    data: SineData, setting: SineSetting, on_phase: Callable[[str], None] | None = None
) -> tuple[dict[str, list[float]], nn.Module]:
    """Test losses of every strategy, `repeats` each, and the student that is best on validation.
    All networks of a phase train at once.
    """
    report = on_phase or (lambda _: None)
    count = setting.repeats
    third = setting.budget // 3
    sixth = setting.budget // 6

    report(f"{3 * count} networks, {third} epochs")
    parents = _trained(fresh(3 * count, setting, 0), data, setting, "parents", third, 5 / 6)
    pairs = [(parents[3 * n], parents[3 * n + 1]) for n in range(count)]

    report(f"{count} merges, {sixth} epochs")
    merged = merged_many(pairs, data.train.x, data.train.y, setting, sixth)
    report(f"{count} fine-tunings, {sixth} epochs")
    students = _trained(merged, data, setting, "finetune", sixth, 2 / 3)

    report(f"{count} distillations, {third} epochs")
    targets = _mixed_targets(pairs, data)
    start = fresh(count, setting, 1)
    distilled = _trained(start, data, setting, "distilled", third, 5 / 6, targets)

    report(f"{count} networks, {setting.budget} epochs")
    alone = _trained(fresh(count, setting, 2), data, setting, "one", setting.budget, 8 / 9)

    test_losses = {
        "student": losses_of(students, data.test.x, data.test.y),
        "bo3": _best_of_three(parents, data),
        "one": losses_of(alone, data.test.x, data.test.y),
        "distilled": losses_of(distilled, data.test.x, data.test.y),
    }
    validation = losses_of(students, data.validation.x, data.validation.y)
    results = {name: [float(loss) for loss in losses] for name, losses in test_losses.items()}
    return results, students[int(validation.argmin())]


def stepped(rate: float, after: float, epochs: int) -> Callable[[int], float]:
    """`rate`, and a tenth of it in the epochs (from 1) beyond the share `after` of all."""
    return lambda epoch: rate if epoch <= after * epochs else rate / 10


def fresh(count: int, setting: SineSetting, stream: int) -> list[nn.Module]:
    """`count` networks 1-hidden-1 with the default initialisation; the random numbers depend on the
    setting's seed and `stream`.
    """
    torch.manual_seed(setting.seed * 100 + stream)
    return [Mlp(1, (setting.hidden,), 1) for _ in range(count)]


def _trained(
    models: list[nn.Module],
    data: SineData,
    setting: SineSetting,
    phase: str,
    epochs: int,
    after: float,
    targets: Tensor | None = None,
) -> list[nn.Module]:
    """`models`, trained on `targets` (M, N, 1) or the labels; their rate falls `after` a share of
    the epochs.
    """
    settings = ManySettings(epochs, stepped(setting.rate, after, epochs), setting.batch_size)
    y = data.train.y if targets is None else targets
    seeds = setting.seeds(phase, len(models))
    return train_many(models, data.train.x, y, settings, seeds=seeds)


def _best_of_three(parents: Sequence[nn.Module], data: SineData) -> Tensor:
    """Test losses (repeats,) of the network of each three that is best on validation."""
    validation = losses_of(parents, data.validation.x, data.validation.y).reshape(-1, 3)
    test = losses_of(parents, data.test.x, data.test.y).reshape(-1, 3)
    return test[torch.arange(len(test)), validation.argmin(1)]


@torch.no_grad()
def _mixed_targets(pairs: Sequence[Pair], data: SineData) -> Tensor:
    """Targets (M, N, 1) of distillation: the mean output of each pair, mixed with the labels."""
    x = data.train.x
    means = torch.stack([(a(x) + b(x)) / 2 for a, b in pairs])
    return DISTILLED_SHARE * means + (1 - DISTILLED_SHARE) * data.train.y


def merged_many(
    pairs: Sequence[Pair], x: Tensor, y: Tensor, setting: SineSetting, epochs: int
) -> list[nn.Module]:
    """Every pair as one network of its parents' size: stacked, gated, trained together on inputs
    `x` (N, 1) and targets `y` (N, 1), cut to the half most likely to be open.
    """
    wide = [stack(pair, x[:1]) for pair in pairs]
    gated = [
        Gated(model, trace(model, x[:1]), noise=setting.noise, seed=n)
        for n, model in enumerate(wide)
    ]
    settings = ManySettings(
        epochs,
        lambda _: setting.rate,
        setting.batch_size,
        faster=(("log_alpha", setting.gate_factor),),
    )
    seeds = setting.seeds("merge", len(gated))
    penalty = _l0_penalty(gated[0], setting, epochs)
    train_many(gated, x, y, settings, seeds=seeds, penalty=penalty)
    return [model.cut(most_open(model.scores(), 0.5)) for model in gated]


def _l0_penalty(gated: Gated, setting: SineSetting, epochs: int) -> Penalty:
    """The L0 loss (M,) of networks stacked like `gated`, times the lambda of the epoch."""
    schedule = lambdas(setting.lambda_schedule, max(1, epochs), setting.lambda_start)
    weights = [setting.lambda_scale * weight for weight in schedule]
    places = [(gated.offsets[group.name], group.size) for group in gated.graph.groups]

    def penalty(parameters: Mapping[str, Tensor], epoch: int) -> Tensor:
        openness = open_probability(parameters["log_alpha"])  # (M, gates)
        means = torch.stack([openness[:, start : start + size].mean(1) for start, size in places])
        return weights[epoch - 1] * (0.5 - means).square().mean(0)

    return penalty
