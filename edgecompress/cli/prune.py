"""`edgecompress prune CKPT`: cut and train in steps, or (with a schedule) while training."""

from __future__ import annotations

from typing import Annotated

import typer

from edgecompress.cli.checkpoints import Checkpoint, TensorsOf, source
from edgecompress.cli.options import DATA, RUN, Given, for_kinds, options_of, verb
from edgecompress.errors import UsageError
from edgecompress.stages.fields import Training
from edgecompress.stages.gradual import GradualStage
from edgecompress.stages.prune import PruneStage
from edgecompress.stages.sparsify import SparsifyStage

SHARED = for_kinds(
    options_of(PruneStage, "Pruning", only=("amount", "layers", "scope")),
    PruneStage,
    GradualStage,
    SparsifyStage,
)
CHANNELS = for_kinds(
    options_of(PruneStage, "Pruning", only=("criterion", "floor")), PruneStage, GradualStage
)
STEPS = options_of(PruneStage, "Pruning", only=("steps",), also=(SparsifyStage,))
ROUNDING = options_of(PruneStage, "Pruning", only=("round_to",))
WHILE_TRAINING = options_of(GradualStage, "Pruning", only=("schedule", "shares", "step"))
TRAINING = for_kinds(options_of(Training, "Training"), PruneStage, GradualStage, SparsifyStage)


Unstructured = Annotated[
    bool,
    typer.Option(
        "--unstructured",
        help="set single weights to zero; an int8 file stores most of them in a bitmap",
        rich_help_panel="Pruning",
    ),
]


@verb(SHARED, CHANNELS, STEPS, ROUNDING, WHILE_TRAINING, TRAINING, DATA, RUN)
def prune(
    checkpoint: Checkpoint,
    given: Given,
    model: TensorsOf = None,
    unstructured: Unstructured = False,
) -> None:
    """Remove channels from a checkpoint, physically, and train what is left.

    Example: edgecompress prune runs/teacher --amount 40% --schedule early --epochs 12
    """
    first, name = source(checkpoint, model)
    amount = None if "amount" in given else "50%"
    if unstructured:
        zeroed = given.draft(SparsifyStage, amount=amount)
        given.launch("prune", [first, zeroed], model=name, checkpoint=checkpoint)
        return
    if gradual := _given(given, "schedule", "shares", "step", "patience"):
        if steps := _given(given, "steps", "round-to"):
            raise UsageError(
                f"{gradual[0]} cuts while training, so {steps[0]} does not apply: drop it, or "
                f"drop {gradual[0]}"
            )
        criterion = None if "criterion" in given else "taylor"
        stage = given.draft(GradualStage, amount=amount, criterion=criterion)
    else:
        stage = given.draft(PruneStage, amount=amount)
    given.launch("prune", [first, stage], model=name, checkpoint=checkpoint)


def _given(given: Given, *names: str) -> list[str]:
    """Those of the options that were given."""
    return [f"--{name}" for name in names if name.replace("-", "_") in given]
