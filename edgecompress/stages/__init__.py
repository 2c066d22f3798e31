"""The stages that a recipe may name. A new stage is a file here, and a line in `STAGES`.

Importing this imports no torch: the work of a stage is imported when it runs.
"""

from __future__ import annotations

from edgecompress.run.stage import Stage
from edgecompress.stages.auto import AutoStage
from edgecompress.stages.compare import CompareStage
from edgecompress.stages.contest import ContestStage
from edgecompress.stages.distill import DistillStage
from edgecompress.stages.export import ExportStage
from edgecompress.stages.gradual import GradualStage
from edgecompress.stages.load import LoadStage
from edgecompress.stages.measure import MeasureStage
from edgecompress.stages.merge import MergeStage
from edgecompress.stages.plan import PlanStage
from edgecompress.stages.profile import ProfileStage
from edgecompress.stages.prune import PruneStage
from edgecompress.stages.qat import QatStage
from edgecompress.stages.quantize import QuantizeStage
from edgecompress.stages.search import SearchStage
from edgecompress.stages.shrink import ShrinkStage
from edgecompress.stages.simplify import SimplifyStage
from edgecompress.stages.sparsify import SparsifyStage
from edgecompress.stages.teacher import TeacherStage
from edgecompress.stages.train import TrainStage

STAGES: list[type[Stage]] = [
    AutoStage,
    TrainStage,
    LoadStage,
    TeacherStage,
    SimplifyStage,
    PlanStage,
    ContestStage,
    PruneStage,
    GradualStage,
    ProfileStage,
    ShrinkStage,
    SparsifyStage,
    DistillStage,
    MergeStage,
    CompareStage,
    QatStage,
    ExportStage,
    QuantizeStage,
    SearchStage,
    MeasureStage,
]
"""Every stage, in the order in which they are documented."""


def stage_name(kind: type[Stage]) -> str:
    """What a recipe calls the stage `kind`."""
    return str(kind.model_fields["stage"].default)


def stage_names() -> tuple[str, ...]:
    """Every `stage:` that a recipe may name."""
    return tuple(stage_name(kind) for kind in STAGES)
