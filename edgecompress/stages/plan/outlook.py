"""How small a run's file can become, found before anything is trained."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from edgecompress import checkpoint, formats
from edgecompress.core.proof import trace
from edgecompress.core.simplify import find_pools, fold_pool
from edgecompress.errors import EdgecompressError
from edgecompress.formats import LOW
from edgecompress.measure import machine
from edgecompress.run.context import Context, Silent, stage_seed
from edgecompress.run.directory import RunDirectory
from edgecompress.stages.plan import PlanStage
from edgecompress.stages.plan.work import Narrow, allowed, at_floors, block_of, competes
from edgecompress.stages.search import SearchStage
from edgecompress.stages.train.work import start
from edgecompress.units import format_size

if TYPE_CHECKING:
    from torch import nn

    from edgecompress.run.stage import Setup


def outlook(setup: Setup) -> str | None:
    """The smallest file that the plan of the run could choose, in one line; None for a run that
    plans none.

    The network at its floors, with the weights that it has before its training, is exported and
    quantized for real. Channels that turn out to be constant after it would make the file smaller
    still.
    """
    planning = [s for s in setup.recipe.stages if isinstance(s, PlanStage | SearchStage)]
    if not planning:
        return None
    settings = planning[0]
    with tempfile.TemporaryDirectory() as folder:
        context = Context(
            data=setup.data,
            device=setup.device,
            seed=stage_seed(setup.recipe.seed, 1),
            recipe=setup.recipe,
            run=RunDirectory(Path(folder)),
            folder=Path(folder),
            reporter=Silent(),
            threads=setup.recipe.threads or machine.threads(),
            fresh=setup.fresh,
        )
        try:
            size, form = _smallest(context, setup, settings)
        except EdgecompressError as error:
            return f"smallest file: none that could be made: {error}"
    text = f"smallest file: {format_size(size)} as {form}, each width at its floor"
    target = settings.targets.bytes if isinstance(settings, PlanStage) else None
    if target is not None and size > target:
        text += f": the target of {format_size(target)} is out of reach (exit code 3)"
    return text


def _smallest(context: Context, setup: Setup, settings: PlanStage | SearchStage) -> tuple[int, str]:
    """(bytes, format) of the smallest file."""
    model = _network(context, setup)
    graph = trace(model, context.example)
    forms = allowed(settings.quantize)
    if isinstance(settings, SearchStage):  # it looks in one format
        forms = (formats.named(settings.quantize),)
    elif settings.quantize == "auto" and settings.targets.bytes and competes(context):
        forms = (*forms, *LOW)
    floors = at_floors(model, graph, forms, settings.floor, block_of(settings))
    narrow = Narrow(context, floors)
    files: list[tuple[int, str]] = []
    refused: EdgecompressError | None = None
    for form in forms:
        try:
            files.append((narrow(form).bytes, form))
        except EdgecompressError as error:
            refused = error
    if not files and refused is not None:
        raise refused
    return min(files)


def _network(context: Context, setup: Setup) -> nn.Module:
    """The network that will be planned, untrained unless it comes from a checkpoint."""
    given = [path for stage in setup.recipe.stages for path in stage.checkpoint_files()]
    if given and setup.recipe.stages[0].stage == "load":
        model, _ = checkpoint.load(given[0], allow_code=setup.recipe.model)
    else:
        model, _ = start(context, setup.source, None)
        _unalike_(model)
    for fold in find_pools(model, context.example):
        model = fold_pool(model, fold)
    return model.cpu().eval()


@torch.no_grad()
def _unalike_(model: nn.Module) -> None:
    """Move every weight and statistic a little, in place: those of a fresh network are often equal
    (zero biases), and files store equal tensors once.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.add_(torch.rand_like(tensor), alpha=1e-3)
