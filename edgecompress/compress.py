"""`compress`: from a model's name and targets to the stages of a recipe. The pipeline does the
rest.

    teacher -> lossless steps -> plan -> contest of formats -> prune in steps, distilling between
            -> distil -> fine-tune on the grid -> export -> quantize -> measure

Model `auto` has its network chosen first, from several families, for the bytes of the target.

With `max_drop` as the only target the plan becomes a search: the smallest file whose accuracy stays
within it.
"""

from __future__ import annotations

from collections.abc import Mapping

from edgecompress.errors import UsageError
from edgecompress.recipe import Recipe, validate
from edgecompress.run.stage import AUTO

Values = Mapping[str, object]
"""Settings of one stage, by key, which the recipe checks."""


def recipe_for(
    model: str,
    *,
    targets: Values,
    teacher: str | None = None,
    train: Values | None = None,
    plan: Values | None = None,
    prune: Values | None = None,
    distill: Values | None = None,
    qat: Values | None = None,
    quantize: str = "auto",
    **run: object,
) -> Recipe:
    """The recipe of `edgecompress compress`. `targets` has `bytes`, `macs`, `latency` and
    `max_drop`, as text or parsed (bytes always as text: `4MB`).

    `train`, `plan`, `prune`, `distill` and `qat` are settings of these stages; `run` takes `data`,
    `seed`, `device`, `threads`, `image_size` and what else a recipe has. Raises `UsageError`
    without a target.
    """
    stages = stages_for(
        targets,
        first={"stage": "train", **(train or {})},
        plan={"stage": "plan", "quantize": quantize, **(plan or {})},
        prune={"stage": "prune", **(prune or {})},
        distill={"stage": "distill", **(distill or {})},
        contest={"stage": "contest"},
        qat={"stage": "qat", **(qat or {})},
        search={"stage": "search", "quantize": quantize},
        quantize={"stage": "quantize", "quantize": quantize},
        teacher=teacher,
        auto={"stage": AUTO} if model == AUTO else None,
    )
    return validate({"command": "compress", "model": model, "stages": stages, **run}, "compress")


def stages_for(
    targets: Values,
    *,
    first: dict[str, object],
    plan: dict[str, object],
    prune: dict[str, object],
    distill: dict[str, object],
    contest: dict[str, object],
    qat: dict[str, object],
    search: dict[str, object],
    quantize: dict[str, object],
    teacher: str | None = None,
    auto: dict[str, object] | None = None,
) -> list[Values]:
    """The stages of a compression, from the settings of each that may be part of it; with `auto`
    the network is chosen first.

    Raises `UsageError` without a target, or with settings of a training that a given `teacher`
    replaces.
    """
    if not targets:
        raise UsageError(
            "no target: give --target 4MB, --target-macs 10M, --target-latency 5ms or --max-drop 1%"
        )
    if auto is not None and first.get("weights") is not None:
        raise UsageError(f"--weights with model {AUTO}: name the network that they belong to")
    if teacher is not None:
        if auto is not None:
            raise UsageError(f"--teacher with model {AUTO}: name the network of that checkpoint")
        if first.get("weights") is not None:
            raise UsageError(
                "--teacher and --weights are both given: a teacher is already trained, so drop one"
            )
        first = {"stage": "load", "checkpoint": teacher}
    if set(targets) == {"max_drop"}:
        if search.get("round_to", "auto") == "auto":
            search["round_to"] = 8
        search["max_drop"] = targets["max_drop"]
        if search.get("quantize") in ("int4", "int2", "mixed"):
            raise UsageError(
                f"--max-drop alone searches in formats that need no training on their grid, not in "
                f"{search['quantize']}: give --target too"
            )
        middle = [search]
    else:
        plan["targets"] = targets
        if qat.get("epochs") is None:
            qat["only_low_bits"] = True
        middle = [plan, contest, prune, distill, qat]
    last: list[Values] = [{"stage": "export"}, quantize, {"stage": "measure"}]
    chosen = [] if auto is None else [auto]
    return [*chosen, first, {"stage": "simplify"}, *middle, *last]
