"""Stage `auto`: which network to begin with, for a file of so many bytes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from edgecompress.errors import UsageError
from edgecompress.run.stage import AUTO, Setup, StageResult
from edgecompress.stages.fields import Names, Training
from edgecompress.stages.plan import PlanStage

if TYPE_CHECKING:
    from edgecompress.run.context import Context
    from edgecompress.run.state import State

FAMILIES = (
    *("resnet20", "resnet8", "mobilenet_v2-cifar", "densenet-cifar", "vgg8-cifar"),
    *("student1", "student3"),
)
"""Residual, inverted residual and dense networks, and plain ones."""


class AutoStage(Training):
    """Choose the network to begin with. Each of `models` is built, cut by the same share in all
    layers until it takes the bytes of the target with weights of 4 bits, and trained shortly; the
    better half goes on with twice the epochs, until one is left. What was trained is thrown away:
    the run goes on with the whole network of that name.
    """

    stage: Literal["auto"] = "auto"
    has_one_length = False
    learns_anew = True
    share_of_time = 3.0
    models: Names = FAMILIES
    """With model auto: the networks that compete."""

    def own_code(self) -> frozenset[str]:
        """The networks that compete."""
        return frozenset(self.models)

    def check(self, setup: Setup) -> Setup:
        """The networks must exist, one must read the images, and there must be a size to choose
        for; until one is chosen, the first that reads them stands for all in what is checked.
        """
        from edgecompress.models.registry import ModelSource, reads

        if setup.recipe.model != AUTO:
            raise UsageError(
                f"stage auto chooses the network, but the recipe names '{setup.recipe.model}': "
                f"write model: {AUTO}, or leave the stage out"
            )
        if setup.data.task.metric != "accuracy":
            raise UsageError(
                f"model {AUTO} chooses among classifiers, and data '{setup.data.name}' has numbers "
                "for targets: name a network"
            )
        self.target(setup.recipe.stages)
        shape, classes = setup.data.image_shape, len(setup.data.classes)
        sources = [ModelSource(name, classes, shape) for name in self.models]
        reading = [source for source in sources if reads(source)]
        if not reading:
            raise UsageError(
                f"none of {', '.join(self.models)} reads images of {shape}: name others with "
                "--models, or give --image-size"
            )
        return replace(setup, source=reading[0])

    @staticmethod
    def target(stages: tuple[object, ...]) -> int:
        """The bytes that the file may take. Raises `UsageError` where the recipe has none."""
        for stage in stages:
            if isinstance(stage, PlanStage) and stage.targets.bytes is not None:
                return stage.targets.bytes
        raise UsageError(f"model {AUTO} chooses a network for a size: give --target 96KB")

    def run(self, context: Context, state: State) -> StageResult:
        """The state is that of the network that won."""
        from edgecompress.stages.auto.work import choose

        return StageResult(choose(context, self, state))
