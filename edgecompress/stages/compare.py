"""Stage `compare`: merging against other ways to spend the same epochs, several times each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from edgecompress.core.stack import stack
from edgecompress.data.sine import Samples, SineData
from edgecompress.files import cache_dir
from edgecompress.methods.compare import STRATEGIES, SineSetting, compared, sine_experiment
from edgecompress.methods.distill import learning_from
from edgecompress.methods.teacher import FixedTeacher
from edgecompress.pipeline import Context, State
from edgecompress.result import SCORES
from edgecompress.settings import CompareStage, MergeStage
from edgecompress.stages.common import (
    count,
    fit_settings,
    validation_accuracy,
    watched,
    with_history,
    with_row,
)
from edgecompress.stages.merge import by_gates, finetuned
from edgecompress.stages.teacher import start, unfolded
from edgecompress.train.batches import evaluate
from edgecompress.train.fit import Loss, fit, smoothed


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
            tested = evaluate(
                model.to(context.device), context.data, context.data.test, context.device
            )[1]
            held = validation_accuracy(context, model)
            results[name].append(tested)
            state = with_row(
                state, f"{name} {repeat + 1}", held, count(model), test_accuracy=tested, wall_s=None
            )
            context.run.log(
                "compared",
                strategy=name,
                repeat=repeat + 1,
                test_accuracy=tested,
                validation_accuracy=held,
            )
            if name == "student" and (best is None or held > best[0]):
                best = (held, model.cpu())
    told = {
        "budget": settings.budget,
        "repeats": settings.repeats,
        "score": f"test {SCORES[context.data.task.metric]}",
        "results": results,
        **compared(results),
    }
    return replace(state, model=best[1] if best else None).with_numbers(compare=told)


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
    splits = (
        Samples(split.pixels[:].flatten(1), split.labels)
        for split in (data.train, data.validation, data.test)
    )
    results, best = sine_experiment(SineData(*splits), setting, context.reporter.note)
    held = validation_accuracy(context, best)
    state = with_row(state, "best student", held, count(best))
    told = {
        "budget": settings.budget,
        "repeats": settings.repeats,
        "score": "test loss",
        "results": results,
        **compared(results),
    }
    return replace(state, model=best.cpu()).with_numbers(compare=told)


def finals(
    context: Context, settings: CompareStage, state: State
) -> tuple[dict[str, nn.Module], State]:
    """The final network of every strategy, by name, for one repeat; and the state with the epochs
    of each training.
    """
    third, sixth = settings.budget // 3, settings.budget // 6
    parents = []
    for n in range(3):
        state, parent = _trained(context, settings, state, third, n, f"parent {n + 1}")
        parents.append(parent)
    held = [validation_accuracy(context, parent) for parent in parents]
    pair = [parent.cpu() for parent in parents[:2]]
    merging = _merging(settings, sixth)
    rows = state.rows
    state, small, _ = by_gates(context, merging, state, pair)
    state, student = finetuned(context, merging, state, small)
    state, one = _trained(context, settings, state, settings.budget, 3, "one network")
    state, distilled = _distilled(context, settings, state, pair, third)
    best = parents[max(range(3), key=lambda n: held[n])]
    return {"student": student, "bo3": best, "one": one, "distilled": distilled}, replace(
        state, rows=rows
    )


def _merging(settings: CompareStage, epochs: int) -> MergeStage:
    shared = settings.model_dump(
        exclude={"stage", "budget", "repeats", "epochs"}, exclude_none=True
    )
    return MergeStage(
        stage="merge",
        checkpoints=("first", "second"),
        epochs=epochs,
        finetune_epochs=epochs,
        **shared,
    )


def _trained(
    context: Context, settings: CompareStage, state: State, epochs: int, number: int, text: str
) -> tuple[State, nn.Module]:
    """A network from scratch, trained on the labels."""
    return _learned(
        context, settings, state, epochs, number, text, smoothed(settings.label_smoothing)
    )


def _distilled(
    context: Context, settings: CompareStage, state: State, pair: list[nn.Module], epochs: int
) -> tuple[State, nn.Module]:
    """A network from scratch that learns from the average of two parents."""
    chosen = fit_settings(context, pair[0], settings, epochs)
    teacher = FixedTeacher(
        stack(pair, context.example),
        context.data,
        context.device,
        augmentation=chosen.augmentation,
        view_seed=chosen.view_seed,
        folder=cache_dir() / "teacher-logits",
    )
    state, model = _learned(
        context, settings, state, epochs, 4, "distil from both", learning_from(teacher)
    )
    teacher.untouched()
    return state, model


def _learned(
    context: Context,
    settings: CompareStage,
    state: State,
    epochs: int,
    number: int,
    text: str,
    loss: Loss,
) -> tuple[State, nn.Module]:
    own = replace(context, seed=context.seed + number)
    model, folds = start(own, state.source, None)
    chosen: Any = replace(fit_settings(context, model, settings), epochs=epochs)
    hooks = watched(context, text)
    result = fit(
        model.to(context.device),
        context.data,
        loss,
        chosen,
        seed=own.seed,
        device=context.device,
        hooks=hooks,
    )
    return with_history(state, text, result), unfolded(result.model.cpu(), folds)
