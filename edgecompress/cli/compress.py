"""`edgecompress compress MODEL --target 4MB`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgecompress.cli.checkpoints import Model
from edgecompress.cli.options import DATA, RUN, TIME, Draft, Given, for_kinds, options_of, verb
from edgecompress.errors import UsageError
from edgecompress.run.stage import AUTO
from edgecompress.stages.auto import AutoStage
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
OTHER_TRAININGS = (PruneStage, DistillStage, SearchStage, ContestStage, QatStage, AutoStage)
if TYPE_CHECKING:
    from edgecompress.cli.curve import Part

CURVE = ("--curve", "command line")
"""What gave the size of a point, and where that came from."""
TAUGHT = TrainStage.share_of_time
COMPRESSED = sum(kind.share_of_time for kind in OTHER_TRAININGS if kind is not AutoStage)
"""Parts of a curve's time: for the teacher, and for each size."""
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
FIELD = options_of(AutoStage, "Targets", only=("models",))
TUNING = options_of(QatStage, "Training", only=("epochs",), renamed={"epochs": "qat_epochs"})

Teacher = Annotated[
    str | None,
    typer.Option("--teacher", help="checkpoint of a trained network", rich_help_panel="Training"),
]


Sizes = Annotated[
    str | None,
    typer.Option(
        "--curve",
        help="32KB,96KB,1MB: a file for each size, all from one teacher",
        rich_help_panel="Targets",
    ),
]


@verb(
    TARGETS,
    FORMAT,
    FIELD,
    STEPS,
    CRITERION,
    WIDTHS,
    FIRST,
    EVERY,
    DISTILLING,
    TUNING,
    DATA,
    TIME,
    RUN,
)
def compress(model: Model, given: Given, teacher: Teacher = None, curve: Sizes = None) -> None:
    """Train (or take) a network, make it fit the targets, and prove what it lost.

    Example: edgecompress compress vgg16 --target 4MB

    With auto in place of a name, networks of several families compete for the size.
    """
    if teacher is not None and (idle := [o.flags[-1] for o in FIRST if o.name in given]):
        raise UsageError(
            f"{idle[0]} is about training the teacher, which --teacher brings trained: drop one"
        )
    known = None if teacher is None else Path(teacher)
    if curve is not None:
        _curve(model, given, known, curve)
        return
    stages = _stages(model, given, given.draft(Targets), _path(teacher))
    given.launch("compress", stages, model=model, checkpoint=known)


def _stages(
    model: str, given: Given, targets: Draft, teacher: str | None
) -> list[Mapping[str, object]]:
    """The stages of a compression to `targets`, with the options that were given."""
    from edgecompress.compress import stages_for

    first = given.draft(TrainStage)
    later = {kind: given.draft(kind) for kind in OTHER_TRAININGS}
    if first.get("lr_schedule") == "multistep":  # the milestones are epochs of the first training
        for draft in later.values():
            del draft["lr_schedule"], draft.sources["lr_schedule"]
    search = later[SearchStage]
    if set(targets) == {"max_drop"}:
        if "steps" in given:
            raise UsageError("--steps is of a plan; --max-drop alone searches: leave --steps out")
        search.sources["max_drop"] = targets.sources["max_drop"]
    return stages_for(
        targets,
        first=first,
        plan=given.draft(PlanStage),
        prune=later[PruneStage],
        distill=later[DistillStage],
        contest=later[ContestStage],
        qat=later[QatStage],
        search=search,
        quantize=given.draft(QuantizeStage),
        teacher=teacher,
        auto=later[AutoStage] if model == AUTO else None,
    )


def _curve(model: str, given: Given, known: Path | None, text: str) -> None:
    """A run for each size of a curve, the largest first, behind that of their teacher."""
    from edgecompress.cli import curve as curves
    from edgecompress.run.directory import default_root

    sizes, options = curves.sizes(text), given.run_options()
    if targets := [option.flags[-1] for option in TARGETS if option.name in given]:
        raise UsageError(f"{targets[0]} with --curve, which has targets of its own: drop one")
    if model == AUTO:
        raise UsageError(f"--curve with model {AUTO}, which is chosen for one size: name a network")
    if "epochs" in given and "time" in given:
        raise UsageError("--epochs with --time and --curve: the time decides, drop one")
    root = options.output or default_root("compress", model)
    if options.dry_run:
        smallest = Draft({"bytes": sizes[-1]}, {"bytes": CURVE})
        stages = _stages(model, given, smallest, _path(known))
        given.launch("compress", stages, model=model, checkpoint=known)
        return
    curves.check(root, options)
    parts = _parts(model, given, known, sizes, root / curves.TEACHER / "model.safetensors")
    shares = [TAUGHT if part.name == curves.TEACHER else COMPRESSED for part in parts]
    curves.draw(curves.divided(parts, shares), root, options)


def _parts(
    model: str, given: Given, known: Path | None, sizes: Sequence[str], taught: Path
) -> list[Part]:
    """The runs of a curve: that of the teacher, which leaves the checkpoint `taught`, unless one is
    brought, and one for each size.
    """
    from edgecompress.cli.curve import TEACHER, Part

    first, teacher = given.draft(TrainStage), _path(known) or str(taught)
    of_size = {
        size: _stages(model, given, Draft({"bytes": size}, {"bytes": CURVE}), teacher)
        for size in sizes
    }
    parts = [
        Part(size, *given.recipe("compress", own, model=model, checkpoint=known, others=[first]))
        for size, own in of_size.items()
    ]
    if known is None:
        others = [stage for stages in of_size.values() for stage in stages]
        parts.insert(0, Part(TEACHER, *given.recipe("train", [first], model=model, others=others)))
    return parts


def _path(checkpoint: str | Path | None) -> str | None:
    """A run directory stands for the checkpoint in it."""
    if checkpoint is not None and (Path(checkpoint) / "model.safetensors").is_file():
        return str(Path(checkpoint) / "model.safetensors")
    return None if checkpoint is None else str(checkpoint)
