"""`edgecompress compress MODEL --target 4MB`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgecompress.cli.checkpoints import Model
from edgecompress.cli.options import DATA, RUN, TIME, Given, for_kinds, options_of, verb
from edgecompress.errors import UsageError
from edgecompress.stages.contest import ContestStage
from edgecompress.stages.distill import DistillStage
from edgecompress.stages.plan import PlanStage, Targets
from edgecompress.stages.prune import PruneStage
from edgecompress.stages.qat import QatStage
from edgecompress.stages.quantize import QuantizeStage
from edgecompress.stages.search import SearchStage
from edgecompress.stages.train import TrainStage

EVERY_TRAINING = (
    *("optimizer", "weight_decay", "lr_schedule", "average", "patience", "precision"),
    *("flip", "shift", "cutout"),
)
"""Settings of all trainings of the run; the others are those of the first one."""
OTHER_TRAININGS = (PruneStage, DistillStage, SearchStage, ContestStage, QatStage)
TARGETS = options_of(Targets, "Targets")
FORMAT = options_of(PlanStage, "Targets", only=("quantize",), also=(QuantizeStage, SearchStage))
WIDTHS = for_kinds(
    options_of(PlanStage, "Pruning", only=("floor", "round_to")), PlanStage, SearchStage
)
STEPS = options_of(PruneStage, "Pruning", only=("steps",))
CRITERION = options_of(PruneStage, "Pruning", only=("criterion",), also=(SearchStage, ContestStage))
FIRST = options_of(TrainStage, "Training", without=EVERY_TRAINING)
EVERY = options_of(TrainStage, "Training", only=EVERY_TRAINING, also=OTHER_TRAININGS)
DISTILLING = options_of(
    DistillStage,
    "Training",
    only=("epochs",),
    renamed={"epochs": "distill_epochs"},
    also=(SearchStage,),
)
TUNING = options_of(QatStage, "Training", only=("epochs",), renamed={"epochs": "qat_epochs"})

Teacher = Annotated[
    str | None,
    typer.Option("--teacher", help="checkpoint of a trained network", rich_help_panel="Training"),
]


@verb(TARGETS, FORMAT, STEPS, CRITERION, WIDTHS, FIRST, EVERY, DISTILLING, TUNING, DATA, TIME, RUN)
def compress(model: Model, given: Given, teacher: Teacher = None) -> None:
    """Train (or take) a network, make it fit the targets, and prove what it lost.

    Example: edgecompress compress vgg16 --target 4MB
    """
    from edgecompress.compress import stages_for

    if teacher is not None and (idle := [o.flags[-1] for o in FIRST if o.name in given]):
        raise UsageError(
            f"{idle[0]} is about training the teacher, which --teacher brings trained: drop one"
        )
    targets, first = given.draft(Targets), given.draft(TrainStage)
    later = {kind: given.draft(kind) for kind in OTHER_TRAININGS}
    if first.get("lr_schedule") == "multistep":  # the milestones are epochs of the first training
        for draft in later.values():
            del draft["lr_schedule"], draft.sources["lr_schedule"]
    search = later[SearchStage]
    if set(targets) == {"max_drop"}:
        if "steps" in given:
            raise UsageError("--steps is of a plan; --max-drop alone searches: leave --steps out")
        search.sources["max_drop"] = targets.sources["max_drop"]
    stages = stages_for(
        targets,
        first=first,
        plan=given.draft(PlanStage),
        prune=later[PruneStage],
        distill=later[DistillStage],
        contest=later[ContestStage],
        qat=later[QatStage],
        search=search,
        quantize=given.draft(QuantizeStage),
        teacher=_path(teacher),
    )
    known = None if teacher is None else Path(teacher)
    given.launch("compress", stages, model=model, checkpoint=known)


def _path(checkpoint: str | None) -> str | None:
    """A run directory stands for the checkpoint in it."""
    if checkpoint is not None and (Path(checkpoint) / "model.safetensors").is_file():
        return str(Path(checkpoint) / "model.safetensors")
    return checkpoint
