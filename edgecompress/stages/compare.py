"""Stage `compare`: merging against other ways to spend the same epochs, several times each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from edgecompress.core.stack import stack
from edgecompress.files import cache_dir
from edgecompress.methods.compare import STRATEGIES, compared
from edgecompress.methods.distill import learning_from
from edgecompress.methods.teacher import FixedTeacher
from edgecompress.pipeline import Context, State
from edgecompress.settings import CompareStage, MergeStage
from edgecompress.stages.common import count, fit_settings, validation_accuracy, watched, with_row
from edgecompress.stages.merge import by_gates, finetuned
from edgecompress.stages.teacher import start, unfolded
from edgecompress.train.batches import evaluate
from edgecompress.train.fit import Loss, fit, smoothed


def compare(context: Context, settings: CompareStage, state: State) -> State:
    """Run every strategy `repeats` times; the test split's labels are read once for each final network."""
    results: dict[str, list[float]] = {name: [] for name in STRATEGIES}
    best: tuple[float, nn.Module] | None = None
    for repeat in range(settings.repeats):
        own = replace(context, seed=context.seed + 100 * repeat)
        context.reporter.note(f"repeat {repeat + 1} of {settings.repeats}")
        for name, model in finals(own, settings, state).items():
            tested = evaluate(model.to(context.device), context.data, context.data.test, context.device)[1]
            held = validation_accuracy(context, model)
            results[name].append(tested)
            state = with_row(state, f"{name} {repeat + 1}", held, count(model), test_accuracy=tested, wall_s=None)
            context.run.log("compared", strategy=name, repeat=repeat + 1, test_accuracy=tested, validation_accuracy=held)
            if name == "student" and (best is None or held > best[0]):
                best = (held, model.cpu())
    told = {"budget": settings.budget, "repeats": settings.repeats, "metric": "test accuracy", "results": results, **compared(results)}
    return replace(state, model=best[1] if best else None).with_numbers(compare=told)


def finals(context: Context, settings: CompareStage, state: State) -> dict[str, nn.Module]:
    """The final network of every strategy, by name, for one repeat."""
    third, sixth = settings.budget // 3, settings.budget // 6
    parents = [_trained(context, settings, state, third, n, f"parent {n + 1}") for n in range(3)]
    held = [validation_accuracy(context, parent) for parent in parents]
    pair = [parent.cpu() for parent in parents[:2]]
    merging = _merging(settings, sixth)
    _, small, _ = by_gates(context, merging, state, pair)
    _, student = finetuned(context, merging, state, small)
    return {
        "student": student,
        "bo3": parents[max(range(3), key=lambda n: held[n])],
        "one": _trained(context, settings, state, settings.budget, 3, "one network"),
        "distilled": _distilled(context, settings, state, pair, third),
    }


def _merging(settings: CompareStage, epochs: int) -> MergeStage:
    shared = settings.model_dump(exclude={"stage", "budget", "repeats", "epochs"})
    return MergeStage(stage="merge", checkpoints=("first", "second"), epochs=epochs, finetune_epochs=epochs, **shared)


def _trained(context: Context, settings: CompareStage, state: State, epochs: int, number: int, text: str) -> nn.Module:
    """A network from scratch, trained on the labels."""
    return _learned(context, settings, state, epochs, number, text, smoothed(settings.label_smoothing))


def _distilled(context: Context, settings: CompareStage, state: State, pair: list[nn.Module], epochs: int) -> nn.Module:
    """A network from scratch that learns from the average of two parents."""
    chosen = fit_settings(context, pair[0], settings, epochs)
    teacher = FixedTeacher(
        stack(pair, context.example), context.data, context.device, augmentation=chosen.augmentation, view_seed=chosen.view_seed,
        folder=cache_dir() / "teacher-logits",
    )  # fmt: skip
    model = _learned(context, settings, state, epochs, 4, "distil from both", learning_from(teacher))
    teacher.untouched()
    return model


def _learned(context: Context, settings: CompareStage, state: State, epochs: int, number: int, text: str, loss: Loss) -> nn.Module:
    own = replace(context, seed=context.seed + number)
    model, folds = start(own, state.source, None)
    chosen: Any = replace(fit_settings(context, model, settings), epochs=epochs)
    fit(model.to(context.device), context.data, loss, chosen, seed=own.seed, device=context.device, hooks=watched(context, text))
    return unfolded(model.cpu(), folds)
