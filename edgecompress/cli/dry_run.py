"""`--dry-run`: everything that a run checks before it begins, and what it would do, as a recipe
that opens with comments.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edgecompress.errors import EnvironmentMissingError
from edgecompress.run.stage import AUTO
from edgecompress.stages.fields import Training
from edgecompress.units import format_count, format_size

if TYPE_CHECKING:
    from edgecompress.recipe import Recipe
    from edgecompress.run.stage import RunSettings, Setup

COPIES = 2
"""Copies of the weights in fp32 that each stage may leave: model and teacher."""


def dry_run(recipe: Recipe, origins: Mapping[str, str], root: Path) -> str:
    """The resolved recipe, below what is known of the run. Raises what `prepare` raises, and
    `EnvironmentMissingError` without a runtime or space.
    """
    from edgecompress.prepare import prepare
    from edgecompress.recipe import to_yaml
    from edgecompress.resolve import resolved

    setup, derived = resolved(prepare(recipe))
    about = [*_about(setup, root)]
    text = to_yaml(setup.recipe, {**derived, **origins}).rstrip()
    return "\n".join([*(f"# {line}" for line in about), text])


def _about(setup: Setup, root: Path) -> Iterator[str]:
    from edgecompress.stages.plan.outlook import outlook

    yield f"data: {setup.data.label}, {setup.data.summary()}"
    parameters = 0
    if setup.network is not None:
        parameters = sum(p.numel() for p in setup.network.parameters())
        yield f"model: {setup.source.name}, {format_count(parameters)} parameters"
    yield f"epochs: {_epochs(setup.recipe)}"
    smallest = outlook(setup) if setup.recipe.model != AUTO else None
    if smallest is not None:
        yield smallest
    yield f"device: {setup.device}; {_runtime()}"
    yield _space(root, 4 * parameters * COPIES * len(setup.recipe.stages))


def _epochs(recipe: RunSettings) -> str:
    """The epochs of each stage and their sum, as far as they are known before the run."""
    known = 0
    parts = []
    is_open = False
    for stage in recipe.stages:
        if not isinstance(stage, Training) or stage.stage == "compare":
            continue
        epochs, steps = stage.epochs, getattr(stage, "steps", 1)
        if epochs is None:
            parts.append(f"{stage.stage} chosen on the way")
        elif steps == "auto":
            parts.append(f"prune {epochs} in each of its steps")
        else:
            each = epochs * steps
            parts.append(f"{stage.stage} {each}")
            known += each
            continue
        is_open = True
    return f"{known}{' or more' if is_open else ''} in all ({', '.join(parts) or 'no training'})"


def _runtime() -> str:
    try:
        import onnxruntime
    except ImportError as error:
        raise EnvironmentMissingError(
            "ONNX Runtime does not load here: run pip install onnxruntime"
        ) from error
    return f"ONNX Runtime {onnxruntime.__version__}"


def _space(root: Path, needed: int) -> str:
    """Raises `EnvironmentMissingError` where the run does not fit on the disk of `root`."""
    folder = root.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise EnvironmentMissingError(
            f"'{root}' would take up to {format_size(needed)}, {format_size(free)} are free "
            "there: free the space or choose another -o"
        )
    return f"output: {root}, up to {format_size(needed)} of the {format_size(free)} that are free"
