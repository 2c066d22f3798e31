"""`compress`: from a model's name and targets to a recipe. The pipeline does the rest.

    teacher -> lossless steps -> plan -> prune in steps, distilling between them
            -> distil -> export -> quantize -> measure

With `max_drop` as the only target the plan becomes a search: the smallest file whose accuracy stays
within it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgecompress.errors import UsageError
from edgecompress.recipe import Recipe, validate


def recipe_for(
    model: str,
    *,
    targets: Mapping[str, Any],
    quantize: str = "auto",
    data: str = "digits",
    teacher: str | None = None,
    weights: str | None = None,
    epochs: int | None = None,
    distill_epochs: int | None = None,
    steps: int | str = "auto",
    criterion: str = "taylor",
    floor: float | str = 0.02,
    round_to: int | str = "auto",
    learning_rate: float | None = None,
    batch_size: int | None = None,
    **run: Any,
) -> Recipe:
    """The recipe of `edgecompress compress`. `targets` has `bytes`, `macs`, `latency` and
    `max_drop`, parsed or as text.

    `run` takes `seed`, `device`, `threads`, `image_size` and `skip_bad`. Raises `UsageError`
    without a target.
    """
    given = {key: value for key, value in targets.items() if value is not None}
    if not given:
        raise UsageError(
            "no target: give --target 4MB, --target-macs 10M, --target-latency 5ms or --max-drop 1%"
        )
    if teacher is not None and weights is not None:
        raise UsageError(
            "--teacher and --weights are both given: a teacher is already trained, so drop one"
        )
    first: dict[str, Any] = {"stage": "load", "checkpoint": teacher}
    if teacher is None:
        first = {
            "stage": "train",
            "epochs": epochs,
            "weights": weights,
            "learning_rate": learning_rate,
            "batch_size": batch_size,
        }
    middle: list[dict[str, Any]]
    if set(given) == {"max_drop"}:
        block = {
            "floor": floor,
            "round_to": 8 if round_to == "auto" else round_to,
            "criterion": criterion,
        }
        middle = [
            {
                "stage": "search",
                "max_drop": given["max_drop"],
                "quantize": quantize,
                "epochs": distill_epochs,
                **block,
            }
        ]
    else:
        middle = [
            {
                "stage": "plan",
                "targets": given,
                "quantize": quantize,
                "floor": floor,
                "round_to": round_to,
            },
            {"stage": "prune", "steps": steps, "criterion": criterion},
            {"stage": "distill", "epochs": distill_epochs},
        ]
    stages = [
        first,
        {"stage": "simplify"},
        *middle,
        {"stage": "export"},
        {"stage": "quantize", "quantize": quantize},
        {"stage": "measure"},
    ]
    return validate(
        {"command": "compress", "model": model, "data": data, "stages": stages, **run}, "compress"
    )
