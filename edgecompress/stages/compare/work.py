"""Merging against other ways to spend the same epochs, several times each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import nn

from edgecompress.core.stack import stack
from edgecompress.data.sine import Samples, SineData
from edgecompress.files import cache_dir
from edgecompress.methods.compare import STRATEGIES, SineSetting, compared, sine_experiment
from edgecompress.methods.distill import learning_from
from edgecompress.methods.teacher import FixedTeacher
from edgecompress.run.context import Context
from edgecompress.run.result import SCORES
from edgecompress.run.sections import CompareSection
from edgecompress.run.state import Network, StageRow, State
from edgecompress.stages.common import count, validation_accuracy, validation_row, watched
from edgecompress.stages.merge import MergeStage
from edgecompress.stages.merge.work import by_gates, finetuned
from edgecompress.stages.train.work import start, unfolded
from edgecompress.stages.training import fit_settings, train_model
from edgecompress.train.batches import evaluate
from edgecompress.train.fit import Loss, smoothed

if TYPE_CHECKING:
    from edgecompress.stages.compare import CompareStage


def compare(context: Context, settings: CompareStage, state: State) -> State:
    """Run every strategy `repeats` times; the test split's labels are read once for each final
    network.
    """
    if context.data.name == "sine" and state.source.name == "mlp":
        return together(context, settings, state)
    results: dict[str, list[float]] = {name: [] for name in STRATEGIES}
    best: tuple[float, nn.Module] | None = None
    for repeat in range(settings.repeats):
        own = replace(context, seed=seed_of(context.seed, repeat))
        context.reporter.note(f"repeat {repeat + 1} of {settings.repeats}")
        models, state = finals(own, settings, state)
        for name, model in models.items():
            row = _final_row(context, name, repeat + 1, model)
            results[name].append(row.test_accuracy or 0.0)
            state = state.with_row(row)
            if name == "student" and (best is None or row.accuracy > best[0]):
                best = (row.accuracy, model.cpu())
    section = _section(settings, f"test {SCORES[context.data.task.metric]}", results)
    if best is not None:
        state = replace(state, model=Network(best[1], state.source))
    return state.with_section("compare", section)


def _final_row(context: Context, name: str, repeat: int, model: nn.Module) -> StageRow:
    """The row of a final network, with its test accuracy, which is logged too."""
    data = context.data
    tested = evaluate(model.to(context.device), data, data.test, context.device)[1]
    row = validation_row(context, f"{name} {repeat}", model)
    context.run.log(
        "compared",
        strategy=name,
        repeat=repeat,
        test_accuracy=tested,
        validation_accuracy=row.accuracy,
    )
    return replace(row, test_accuracy=tested, timed=False)


def _section(settings: CompareStage, score: str, results: dict[str, list[float]]) -> CompareSection:
    return {
        "budget": settings.budget,
        "repeats": settings.repeats,
        "score": score,
        "results": {name: list(values) for name, values in results.items()},
        **compared(results),
    }


def seed_of(seed: int, repeat: int) -> int:
    """A run's own seed for a repeat (from 0): of runs whose seeds are other numbers, below 10,000,
    no two are alike.
    """
    return seed + 100 * (repeat % 10) + 10_000_000 * (repeat // 10)


def together(context: Context, settings: CompareStage, state: State) -> State:
    """The sine problem's networks 1-100-1 are so small that all networks of a phase train at once,
    by the source's settings.
    """
    data, usual = context.data, SineSetting()
    setting = replace(
        usual,
        budget=settings.budget,
        repeats=settings.repeats,
        rate=settings.learning_rate or usual.rate,
        seed=context.recipe.seed,
        batch_size=settings.batch_size or usual.batch_size,
        lambda_start=settings.lambda_start or usual.lambda_start,
        lambda_scale=settings.lambda_scale,
    )
    splits = (data.train, data.validation, data.test)
    samples = (Samples(split.pixels[:].flatten(1), split.labels) for split in splits)
    results, best = sine_experiment(SineData(*samples), setting, context.reporter.note)
    row = StageRow("best student", validation_accuracy(context, best), count(best))
    state = replace(state, model=Network(best.cpu(), state.source)).with_row(row)
    return state.with_section("compare", _section(settings, "test loss", results))


def finals(
    context: Context, settings: CompareStage, state: State
) -> tuple[dict[str, nn.Module], State]:
    """The final network of every strategy, by name, for one repeat; and the state with the epochs
    of each training.
    """
    third = settings.budget // 3
    training = _Training(context, settings)
    parents = []
    for n in range(3):
        state, parent = training.on_labels(state, third, n, f"parent {n + 1}")
        parents.append(parent)
    accuracies = [validation_accuracy(context, parent) for parent in parents]
    pair = [parent.cpu() for parent in parents[:2]]

    rows = state.rows
    merging = _merging(settings, settings.budget // 6)
    merged = by_gates(context, merging, state, pair)
    state, student = finetuned(context, merging, merged.state, merged.module)
    state, one = training.on_labels(state, settings.budget, 3, "one network")
    state, distilled = training.from_both(state, pair, third)
    best = parents[max(range(3), key=lambda n: accuracies[n])]
    models = {"student": student, "bo3": best, "one": one, "distilled": distilled}
    return models, replace(state, rows=rows)


def _merging(settings: CompareStage, epochs: int) -> MergeStage:
    own = {"stage", "budget", "repeats", "epochs"}
    shared = settings.model_dump(exclude=own, exclude_none=True)
    parents = ("first", "second")
    return MergeStage(checkpoints=parents, epochs=epochs, finetune_epochs=epochs, **shared)


@dataclass(frozen=True)
class _Training:
    """Networks from scratch, each from a seed of its own."""

    context: Context
    settings: CompareStage

    def on_labels(
        self, state: State, epochs: int, number: int, text: str
    ) -> tuple[State, nn.Module]:
        """One that learns from the labels."""
        loss = smoothed(self.settings.label_smoothing)
        return self._learned(state, epochs, number, text, loss)

    def from_both(
        self, state: State, pair: list[nn.Module], epochs: int
    ) -> tuple[State, nn.Module]:
        """One that learns from the average of two parents."""
        context = self.context
        chosen = fit_settings(context, pair[0], self.settings, epochs)
        teacher = FixedTeacher(
            stack(pair, context.example),
            context.data,
            context.device,
            augmentation=chosen.augmentation,
            view_seed=chosen.view_seed,
            folder=cache_dir() / "teacher-logits",
        )
        loss = learning_from(teacher)
        state, model = self._learned(state, epochs, 4, "distil from both", loss)
        teacher.untouched()
        return state, model

    def _learned(
        self, state: State, epochs: int, number: int, text: str, loss: Loss
    ) -> tuple[State, nn.Module]:
        context = self.context
        own = replace(context, seed=context.seed + number)
        model, folds = start(own, state.source, None)
        chosen = replace(fit_settings(context, model, self.settings), epochs=epochs)
        result = train_model(own, model, loss, chosen, watched(context, text))
        return state.with_history(text, result), unfolded(result.model.cpu(), folds)
