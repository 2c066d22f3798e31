"""`edgecompress compare MODEL`."""

from __future__ import annotations

from edgecompress.cli.checkpoints import Model
from edgecompress.cli.options import DATA, RUN, Given, options_of, verb
from edgecompress.stages.compare import CompareStage
from edgecompress.stages.fields import Training

COMPARISON = options_of(CompareStage, "Comparison", without=tuple(Training.model_fields))
NOT_HERE = ("epochs", "patience")
"""A comparison has a budget instead."""
TRAINING = options_of(
    CompareStage,
    "Training",
    only=[o.field for o in options_of(Training, "") if o.field not in NOT_HERE],
)


@verb(COMPARISON, TRAINING, DATA, RUN)
def compare(model: Model, given: Given) -> None:
    """Does merging help? One budget of epochs: two networks merged, the best of three, one alone,
    one distilled from two.

    Example: edgecompress compare resnet20 --data folder:photos --budget 60 --repeats 5
    """
    given.launch("compare", [given.draft(CompareStage)], model=model)
