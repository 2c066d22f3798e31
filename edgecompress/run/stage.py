"""What a stage is: settings that a recipe may give, checks before the run, and the work.

A stage is one class in `stages/`: its fields are the keys of the recipe and the options of the
command line, `check` looks at what it needs before a file is written, `run` does the work.
Importing it imports no torch, since `--help` is made from the fields: the work is imported inside
`run`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from edgecompress.run.values import Natural, Seconds, Side, Threads

if TYPE_CHECKING:
    import torch
    from torch import nn

    from edgecompress.data import DataSet, Preprocess
    from edgecompress.models.registry import ModelSource
    from edgecompress.run.context import Context, Fresh
    from edgecompress.run.state import State


AUTO = "auto"
"""The model of a recipe whose network a stage chooses."""


class Strict(BaseModel):
    """Frozen settings in which an unknown key is an error."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    def given(self, *names: str) -> list[str]:
        """Those of the fields `names` that differ from their defaults."""
        fields = type(self).model_fields
        return [name for name in names if getattr(self, name) != fields[name].default]


@dataclass(frozen=True)
class TeacherSource:
    """What a teacher of its own kind is built from, and how it reads pixels."""

    source: ModelSource
    preprocess: Preprocess


@dataclass(frozen=True)
class Setup:
    """What a run starts with, checked: data, device, what its network is built from, its teacher,
    the network itself on the meta device (None where that would run code nobody named), and for
    the first training the network that the user's own code returned.

    Stages check it one after the other, and each may change it for those that follow.
    """

    recipe: RunSettings
    data: DataSet
    device: torch.device
    source: ModelSource
    teacher: TeacherSource | None = None
    network: nn.Module | None = None
    fresh: Fresh | None = None


@dataclass(frozen=True)
class StageResult:
    """What a stage changed: the next state, the stages that are to run after it, and a text for
    each target that it missed.

    A network that changed is a new `Network` in the state; the one that the stage was given stays
    as it was. The runner checks that by digests.
    """

    state: State
    follow: tuple[Stage, ...] = ()
    missed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scheduled:
    """A stage of a run, under the name of its folder and of its row."""

    name: str
    settings: Stage


class Stage(Strict):
    """Base of all stages. A subclass declares `stage: Literal["its-name"]`."""

    stage: str
    teaches: ClassVar[bool] = False
    """It leaves a teacher for the stages that follow."""
    single_process: ClassVar[bool] = False
    """Of several processes that train together only the first one runs it and what follows."""

    def checkpoint_files(self) -> tuple[Path, ...]:
        """Checkpoints whose networks decide how the run reads images."""
        return ()

    def inputs(self) -> tuple[Path, ...]:
        """Every file with a network that the stage reads."""
        return self.checkpoint_files()

    def own_code(self) -> frozenset[str]:
        """Models (`file.py:factory`) that it names, whose code may therefore run."""
        return frozenset()

    def teacher_settings(self) -> list[str]:
        """Names of given settings that mean nothing without a teacher."""
        return []

    def check(self, setup: Setup) -> Setup:
        """The setup for the stages that follow. Raises `UsageError` for what cannot work."""
        return setup

    def check_network(self, setup: Setup, blank: nn.Module) -> None:
        """Raises `UsageError` when `blank`, the recipe's network on the meta device, lacks what the
        settings name.
        """

    def scheduled(self) -> tuple[Scheduled, ...]:
        """The stages that this entry of a recipe stands for."""
        return (Scheduled(self.stage, self),)

    def time_share(self, state: State) -> float:
        """The part of a run's time that is for the stage, over those of the others, when `state`
        is known; 0 where it trains for the epochs that it was given, or not at all.
        """
        return 0.0

    def run(self, context: Context, state: State) -> StageResult:
        """Do the work."""
        raise TypeError(f"stage '{self.stage}' does not define run")


class RunSettings(Strict):
    """Everything that decides a run: model, data, seed, stages. `recipe.Recipe` reads one."""

    command: str = "run"
    """The verb that wrote the recipe."""
    model: str
    """A name (edgecompress models), pkg.mod:factory or file.py:factory."""
    data: str = Field(
        "digits",
        json_schema_extra={
            "words": [
                *("digits", "cifar10", "cifar100", "imagenette", "imagewoof", "sine"),
                *("folder:", "npz:"),
            ]
        },
    )
    """digits, cifar10, cifar100, imagenette, imagewoof, sine, folder:DIR or npz:FILE."""
    seed: Natural = 0
    """Random seed."""
    device: str = Field("auto", json_schema_extra={"words": ["auto", "cpu", "cuda"]})
    """auto, cpu, cuda or cuda:N."""
    threads: Threads | None = None
    """CPU threads; default: all cores, or OMP_NUM_THREADS."""
    image_size: Side | None = None
    """Side of the square images that the network reads; default: as they are, or the network's own
    where they have several sizes or are larger than 224."""
    resize: Side | None = None
    """The shorter side before that square is cut from the middle; default: --image-size."""
    normalize: Literal["data", "imagenet"] = "data"
    """Mean and standard deviation: of the training split, or ImageNet's."""
    task: Literal["auto", "reconstruction"] = "auto"
    """What outputs are compared with: the classes or numbers of the data, or (reconstruction, for
    autoencoders) the image itself; its score is R²."""
    time: Seconds | None = None
    """Time that the run may take: 60min. Its trainings get as many epochs as fit."""
    skip_bad: bool = False
    """Skip corrupt images, and report how many."""
    stages: tuple[Stage, ...]
    """What is done, in order."""

    def code_names(self) -> frozenset[str]:
        """The models that the user named, whose own code may therefore run."""
        return frozenset({self.model}).union(*(stage.own_code() for stage in self.stages))

    def digest(self) -> str:
        """SHA-256 (hex) of every value but `threads`, which the machine chooses: two runs with the
        same digest do the same, up to rounding.
        """
        return hashlib.sha256(self.model_dump_json(exclude={"threads"}).encode()).hexdigest()
