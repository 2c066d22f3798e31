"""Does merging help? Strategies under one budget of epochs, many times, and the statistics of their
results.

    student     two parents for a third of the budget each, merged with gates for a sixth,
                fine-tuned for a sixth
    bo3         the best of three networks, a third of the budget each, chosen on validation
    one         one network for the whole budget
    distilled   a network that learns for a third from the mean of the student's two parents, the
                same budget as the student

The student's parents are the first two of bo3's three, so these two are paired.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from edgecompress.core import trace
from edgecompress.core.stack import stack
from edgecompress.data.sine import SineData
from edgecompress.errors import UsageError
from edgecompress.methods.gates import Gated, lambdas, most_open, open_probability
from edgecompress.models.small import Mlp
from edgecompress.train.many import ManySettings, losses_of, train_many

STRATEGIES = ("student", "bo3", "one", "distilled")
DISTILLED_SHARE = 0.7
"""Weight of the parents' mean beside the labels in strategy `distilled`."""


@dataclass(frozen=True)
class SineSetting:
    """The sine experiment: `budget` epochs a strategy, `repeats` results of each; the source's
    values.
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
                f"budget {self.budget} cannot be spent alike: strategies take thirds and "
                "sixths of it; give a multiple of 6"
            )


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


def versus(
    first: Sequence[float], other: Sequence[float], *, paired: bool = False
) -> dict[str, Any]:
    """Two strategies' results held against each other: test, two-sided p-value, and an effect size
    in -1..1 (negative: `first` is lower).

    Unpaired: Mann and Whitney's rank test, the effect is Cliff's delta. Paired: Wilcoxon's
    signed-rank test, the effect is the matched rank-biserial correlation.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(other, dtype=np.float64)
    if paired:
        scale = float(max(np.abs(a).max(), np.abs(b).max())) or 1.0
        difference = np.round((a - b) / scale, 12)  # differences of as many images are ties
        if not difference.any():
            return {"test": "wilcoxon", "p": 1.0, "effect": 0.0}
        ranks = stats.rankdata(np.abs(difference[difference != 0]))
        signs = np.sign(difference[difference != 0])
        p = float(stats.wilcoxon(difference).pvalue)
        return {"test": "wilcoxon", "p": p, "effect": float((ranks * signs).sum() / ranks.sum())}
    found = stats.mannwhitneyu(a, b, alternative="two-sided")
    return {
        "test": "mann-whitney",
        "p": float(found.pvalue),
        "effect": float(2 * found.statistic / (len(a) * len(b)) - 1),
    }


def compared(results: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """The summary of every strategy, and the student against each other one; bo3 and distilled
    share its parents: they are paired.
    """
    others = [name for name in results if name != "student"]
    return {
        "summary": {name: summary(values) for name, values in results.items()},
        "student_against": {
            name: versus(results["student"], results[name], paired=name in ("bo3", "distilled"))
            for name in others
        },
    }


def stepped(rate: float, after: float, epochs: int) -> Callable[[int], float]:
    """`rate`, and a tenth of it in the epochs (from 1) beyond the share `after` of all."""
    return lambda epoch: rate if epoch <= after * epochs else rate / 10


def sine_experiment(
    data: SineData, setting: SineSetting, on_phase: Callable[[str], None] | None = None
) -> tuple[dict[str, list[float]], nn.Module]:
    """Test losses of every strategy, `repeats` each, and the student that is best on validation.
    All networks of a phase train at once.
    """
    say = on_phase or (lambda _: None)
    third, sixth, count = setting.budget // 3, setting.budget // 6, setting.repeats
    x, y = data.train.x, data.train.y

    def trained(
        models: list[nn.Module], epochs: int, after: float, first_seed: int, targets: Tensor = y
    ) -> list[nn.Module]:
        settings = ManySettings(epochs, stepped(setting.rate, after, epochs), setting.batch_size)
        seeds = [setting.seed * 1_000_000 + first_seed + n for n in range(len(models))]
        return train_many(models, x, targets, settings, seeds=seeds)

    say(f"{3 * count} networks, {third} epochs")
    parents = trained(fresh(3 * count, setting, 0), third, 5 / 6, 0)
    validation = losses_of(parents, data.validation.x, data.validation.y).reshape(count, 3)
    test = losses_of(parents, data.test.x, data.test.y).reshape(count, 3)
    best = test[torch.arange(count), validation.argmin(1)]

    say(f"{count} merges, {sixth} epochs")
    pairs = [(parents[3 * n], parents[3 * n + 1]) for n in range(count)]
    merged = merged_many(pairs, x, y, setting, sixth)
    say(f"{count} fine-tunings, {sixth} epochs")
    students = trained(merged, sixth, 2 / 3, 100_000)

    say(f"{count} distillations, {third} epochs")
    with torch.no_grad():
        told = torch.stack([(a(x) + b(x)) / 2 for a, b in pairs])
    mixed = DISTILLED_SHARE * told + (1 - DISTILLED_SHARE) * y
    distilled = trained(fresh(count, setting, 1), third, 5 / 6, 200_000, mixed)

    say(f"{count} networks, {setting.budget} epochs")
    alone = trained(fresh(count, setting, 2), setting.budget, 8 / 9, 300_000)
    lost = {
        name: losses_of(models, data.test.x, data.test.y)
        for name, models in (("student", students), ("one", alone), ("distilled", distilled))
    }
    found = {
        "student": lost["student"],
        "bo3": best,
        "one": lost["one"],
        "distilled": lost["distilled"],
    }
    held = losses_of(students, data.validation.x, data.validation.y)
    return {name: [float(value) for value in values] for name, values in found.items()}, students[
        int(held.argmin())
    ]


def fresh(count: int, setting: SineSetting, stream: int) -> list[nn.Module]:
    """`count` networks 1-hidden-1 from the default initialisation, drawn by the setting's seed and
    `stream`.
    """
    torch.manual_seed(setting.seed * 100 + stream)
    return [Mlp(1, (setting.hidden,), 1) for _ in range(count)]


def merged_many(
    pairs: Sequence[tuple[nn.Module, nn.Module]],
    x: Tensor,
    y: Tensor,
    setting: SineSetting,
    epochs: int,
) -> list[nn.Module]:
    """Every pair as one network of its parents' size: stacked, gated, trained together, cut to the
    most open half.
    """
    wide = [stack(pair, x[:1]) for pair in pairs]
    gated = [
        Gated(model, trace(model, x[:1]), noise=setting.noise, seed=n)
        for n, model in enumerate(wide)
    ]
    weights = [
        setting.lambda_scale * w
        for w in lambdas(setting.lambda_schedule, max(1, epochs), setting.lambda_start)
    ]
    places = [(gated[0].offsets[g.name], g.size) for g in gated[0].graph.groups]

    def penalty(parameters: Mapping[str, Tensor], epoch: int) -> Tensor:
        openness = open_probability(parameters["log_alpha"])
        means = torch.stack([openness[:, start : start + size].mean(1) for start, size in places])
        return weights[epoch - 1] * (0.5 - means).square().mean(0)

    settings = ManySettings(
        epochs,
        lambda _: setting.rate,
        setting.batch_size,
        faster=(("log_alpha", setting.gate_factor),),
    )
    seeds = [setting.seed * 1_000_000 + 400_000 + n for n in range(len(gated))]
    train_many(gated, x, y, settings, seeds=seeds, penalty=penalty)
    return [model.cut(most_open(model.scores(), 0.5)) for model in gated]
