"""`edgecompress merge A B [C ...]`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgecompress.cli.checkpoints import OwnCode, checkpoint_in, named_checkpoint
from edgecompress.cli.options import DATA, RUN, Given, options_of, verb
from edgecompress.stages.fields import Training
from edgecompress.stages.merge import MergeStage

MERGING = options_of(MergeStage, "Merging", without=tuple(Training.model_fields))
TRAINING = options_of(MergeStage, "Training", only=[o.field for o in options_of(Training, "")])

Parents = Annotated[
    list[Path], typer.Argument(help="two or more checkpoints (or run folders) of the same network")
]


@verb(MERGING, TRAINING, DATA, RUN)
def merge(parents: Parents, given: Given, model: OwnCode = None) -> None:
    """Merge trained networks into one of the same size, and show whether it is better than the best
    of them.

    Example: edgecompress merge runs/a runs/b --data folder:photos --epochs 20
    """
    name = named_checkpoint(parents[0], model)[1]
    stages = [
        given.draft(MergeStage, checkpoints=[checkpoint_in(path) for path in parents]),
        {"stage": "export"},
        {"stage": "quantize", "quantize": "none"},
        {"stage": "measure"},
    ]
    one_task = given["heads"] != "separate"
    given.launch("merge", stages, model=name, checkpoint=parents[0] if one_task else None)
