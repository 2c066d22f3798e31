"""What each stage of a recipe does. `STAGES` maps the name in the recipe to the function that the
pipeline calls.
"""

from __future__ import annotations

from edgecompress.pipeline import Stage
from edgecompress.stages.compare import compare
from edgecompress.stages.distill import distill
from edgecompress.stages.gradual import gradual
from edgecompress.stages.int8 import qat
from edgecompress.stages.measure import measure
from edgecompress.stages.merge import merge
from edgecompress.stages.plan import plan
from edgecompress.stages.profile import profile
from edgecompress.stages.prune import prune
from edgecompress.stages.search import search
from edgecompress.stages.ship import export, quantize
from edgecompress.stages.simplify import shrink, simplify
from edgecompress.stages.teacher import load, teacher, train

STAGES: dict[str, Stage] = {
    "train": train,
    "load": load,
    "teacher": teacher,
    "simplify": simplify,
    "plan": plan,
    "prune": prune,
    "gradual": gradual,
    "profile": profile,
    "shrink": shrink,
    "distill": distill,
    "merge": merge,
    "compare": compare,
    "search": search,
    "qat": qat,
    "export": export,
    "quantize": quantize,
    "measure": measure,
}

__all__ = ["STAGES"]
