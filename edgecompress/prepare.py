"""What can be checked before a run writes a file: device, data, model, checkpoints, and the names
that stages mention.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from edgecompress import checkpoint
from edgecompress.core import trace
from edgecompress.core.stack import check_alike, check_stackable
from edgecompress.data import DataSet, Preprocess, load_data
from edgecompress.data.joined import part_of
from edgecompress.errors import EnvironmentMissingError, UsageError
from edgecompress.methods.features import convolution_of
from edgecompress.methods.gradual import groups_of
from edgecompress.methods.scores import batchnorm_layers
from edgecompress.models.registry import ModelSource, build, runs_user_code
from edgecompress.models.weights import load_weights
from edgecompress.recipe import Recipe
from edgecompress.settings import TeacherStage
from edgecompress.train import distributed


@dataclass(frozen=True)
class Mentor:
    """What a teacher of another kind than the model is built from, and how it reads pixels."""

    source: ModelSource
    preprocess: Preprocess


def pick_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:N` as a device; under torchrun each process has its own.

    Raises `EnvironmentMissingError` when CUDA is asked for and absent.
    """
    name = distributed.own_device(name)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    kind, _, number = name.partition(":")
    if kind != "cuda" or (number and not number.isdigit()):
        raise UsageError(f"device '{name}' is not known: allowed are auto, cpu, cuda, cuda:N")
    if not torch.cuda.is_available() or int(number or 0) >= torch.cuda.device_count():
        raise EnvironmentMissingError(
            f"device '{name}' is not here: use --device cpu, or pip install torch with CUDA"
        )
    return torch.device(name)


def prepare(recipe: Recipe) -> tuple[DataSet, torch.device, ModelSource]:
    """Check everything that can be checked before a file is written: device, data, model name,
    checkpoints.
    """
    device, teacher = pick_device(recipe.device), None
    data = load_data(
        recipe.data,
        image_size=recipe.image_size,
        resize=recipe.resize,
        normalize=recipe.normalize,
        skip_bad=recipe.skip_bad,
    )
    source = ModelSource(recipe.model, len(data.classes), data.image_shape)
    for stage in recipe.stages:  # checkpoints first: they say how images are read
        if stage.stage in ("load", "merge"):
            named = [stage.checkpoint] if stage.stage == "load" else stage.checkpoints
            if not named:
                continue
            data = as_trained([Path(path) for path in named], recipe, data)
            source = replace(source, image_shape=data.image_shape)
    for stage in recipe.stages:
        if stage.stage == "load":
            source = _checked_checkpoint(Path(stage.checkpoint), recipe, data)
        elif stage.stage == "train" and stage.weights is not None:
            load_weights(source, stage.weights)
        elif stage.stage == "merge" and stage.checkpoints:
            check_parents([Path(path) for path in stage.checkpoints], recipe, data, stage.heads)
        elif stage.stage == "teacher":
            teacher = check_teacher(stage, recipe, data)
        elif (
            stage.stage == "distill"
            and stage.mode != "offline"
            and teacher is not None
            and teacher.preprocess != data.preprocess
        ):
            raise UsageError(
                f"mode {stage.mode} gives teacher and student the same images, but the "
                f"teacher reads {teacher.preprocess.as_dict()} and "
                f"the student {data.preprocess.as_dict()}: give the --image-size and "
                "--normalize that the teacher was trained with"
            )
    if not runs_user_code(source.name):
        with torch.device("meta"):
            blank = build(source)
        check_names(recipe, blank, data)
        check_features(recipe, blank, teacher)
    check_comparisons(recipe, source, data)
    return data, device, source


def check_comparisons(recipe: Recipe, source: ModelSource, data: DataSet) -> None:
    """Raises `UsageError` where a stage would train several networks first, and could not merge
    them.
    """
    for stage in recipe.stages:
        if stage.stage == "compare" and data.name == "sine" and source.name == "mlp":
            other = stage.unlike_the_source()
            if other:
                name = other[0]
                raise UsageError(
                    f"{name} {getattr(stage, name)}: the sine problem's networks train as "
                    "the source did; leave it out"
                )
        elif stage.stage == "compare" or (
            stage.stage == "merge" and stage.train_parents is not None
        ):
            with contextlib.nullcontext() if runs_user_code(source.name) else torch.device("meta"):
                pair = [build(source), build(source)]
            check_stackable(pair, torch.zeros(1, *data.image_shape))


def inputs(recipe: Recipe) -> list[Path]:
    """Files with networks that the stages of `recipe` read."""
    named = list[str | None]()
    for stage in recipe.stages:
        if stage.stage == "load":
            named.append(stage.checkpoint)
        elif stage.stage == "merge":
            named += stage.checkpoints
        elif stage.stage == "teacher":
            named += [stage.checkpoint, stage.weights]
        elif stage.stage == "train":
            named.append(stage.weights)
    return [Path(name) for name in named if name is not None and Path(name).is_file()]


def as_trained(paths: list[Path], recipe: Recipe, data: DataSet) -> DataSet:
    """`data`, read as the networks of checkpoints were trained to, where they say so.

    Raises `UsageError` when they do not agree, or when the recipe asks for another size or other
    statistics.
    """
    noted = [checkpoint.preprocess_of(checkpoint.read_manifest(path)) for path in paths]
    wanted = noted[0]
    if wanted is None:
        return data
    if any(other != wanted for other in noted):
        raise UsageError(
            f"checkpoints {', '.join(map(str, paths))} were trained on images that were read "
            "differently: train them alike, e.g. all with "
            "--normalize imagenet"
        )
    asked = recipe.image_size is not None or recipe.resize is not None or recipe.normalize != "data"
    if asked and wanted != data.preprocess:
        raise UsageError(
            f"checkpoint '{paths[0]}' was trained on images read as {wanted.as_dict()}, the "
            f"options ask for {data.preprocess.as_dict()}: "
            "leave --image-size, --resize and --normalize out"
        )
    return replace(data, preprocess=wanted)


def check_teacher(stage: TeacherStage, recipe: Recipe, data: DataSet) -> Mentor:
    """What a stage `teacher` will bring. Raises `UsageError` when it does not know the data's
    classes, or cannot be built.
    """
    if stage.checkpoint is None:
        source = ModelSource(str(stage.model), len(data.classes), data.image_shape)
        if stage.weights is not None:
            load_weights(source, stage.weights)
        elif not runs_user_code(source.name):
            with torch.device("meta"):
                build(source)
        return Mentor(source, data.preprocess)
    path = Path(stage.checkpoint)
    manifest = checkpoint.read_manifest(path)
    if runs_user_code(manifest.model.name) and manifest.model.name not in (
        stage.model,
        recipe.model,
    ):
        name = manifest.model.name
        raise UsageError(
            f"teacher '{path}' is built by your own code '{name}': name it again to run it: "
            f"--teacher-model {name}"
        )
    if manifest.model.num_classes != len(data.classes):
        raise UsageError(
            f"teacher '{path}' knows {manifest.model.num_classes} classes, data "
            f"'{recipe.data}' has {len(data.classes)}: give a teacher "
            "trained on these classes"
        )
    check_classes(path, data, recipe.data)
    preprocess = checkpoint.preprocess_of(manifest) or data.preprocess
    if preprocess.shape(data.native_shape) != manifest.model.image_shape:
        raise UsageError(
            f"teacher '{path}' reads images {manifest.model.image_shape}, data "
            f"'{recipe.data}' gives it "
            f"{preprocess.shape(data.native_shape)}: give the --image-size that it was trained with"
        )
    return Mentor(manifest.model, preprocess)


def check_parents(
    paths: list[Path], recipe: Recipe, data: DataSet, heads: str = "average"
) -> list[nn.Module]:
    """The networks to merge. Raises `UsageError` when one is not of the recipe's model and data, or
    they differ in a tensor's shape.

    With `heads` separate, each is of its own part of the data.
    """
    if (heads == "separate") != bool(data.parts) or (data.parts and len(data.parts) != len(paths)):
        wanted = f"data '{recipe.data}' with {len(data.parts) or 1} part(s)"
        raise UsageError(
            f"{wanted} for {len(paths)} networks and heads {heads}: --heads separate goes "
            "with --data A+B, a part a network"
        )
    manifests = [checkpoint.read_manifest(path) for path in paths]
    models = list[nn.Module]()
    for number, (path, manifest) in enumerate(zip(paths, manifests, strict=True)):
        if manifest.model.name != manifests[0].model.name:
            first = models[0] if models else checkpoint.load(paths[0], allow_code=recipe.model)[0]
            check_alike([first, checkpoint.load(path, allow_code=recipe.model)[0]])
        own = part_of(data, number) if data.parts else data
        _checked_checkpoint(path, recipe, own)
        told = manifest.notes.get("data_digest")
        for other, part in enumerate(data.parts):
            if told == part.digest() != own.digest():
                raise UsageError(
                    f"network {number + 1} ('{path}') was trained on part {other + 1} of "
                    f"'{recipe.data}': give them in one order"
                )
        models.append(checkpoint.load(path, allow_code=recipe.model)[0])
    check_stackable(models, torch.zeros(1, *data.image_shape), heads=heads)
    return models


def check_names(recipe: Recipe, blank: nn.Module, data: DataSet) -> None:
    """Raises `UsageError` when a stage names a layer that the network has not, or a criterion that
    it cannot have.
    """
    stages = [s for s in recipe.stages if s.stage in ("prune", "gradual", "search")]
    named = {name for s in stages for name in getattr(s, "layers", None) or ()}
    named |= {
        name
        for s in stages
        for name in (s.shares if s.stage == "gradual" and isinstance(s.shares, dict) else ())
    }
    by_norm = any(s.criterion == "bn" for s in stages)
    if not named and not by_norm:
        return
    graph = trace(blank, torch.zeros(1, *data.image_shape))
    for name in sorted(named):
        groups_of(graph, name)
    if by_norm:
        batchnorm_layers(blank, graph)


def check_features(recipe: Recipe, blank: nn.Module, teacher: Mentor | None) -> None:
    """Raises `UsageError` when a stage pairs convolutions that student or teacher has not."""
    pairs = [
        pair
        for s in recipe.stages
        if s.stage == "distill"
        for pair in (s.feature_layers or {}).items()
    ]
    for mine, other in pairs:
        convolution_of(blank, mine, "student")
        if teacher is not None and not runs_user_code(teacher.source.name):
            with torch.device("meta"):
                convolution_of(build(teacher.source), other, "teacher")


def _checked_checkpoint(path: Path, recipe: Recipe, data: DataSet) -> ModelSource:
    source = checkpoint.read_manifest(path).model
    if source.name != recipe.model:
        raise UsageError(
            f"checkpoint '{path}' holds a {source.name}, not a {recipe.model}: name that "
            "model, or another checkpoint"
        )
    if source.num_classes != len(data.classes) or source.image_shape != data.image_shape:
        raise UsageError(
            f"checkpoint '{path}' is for {source.num_classes} classes of images "
            f"{source.image_shape}, "
            f"data '{recipe.data}' has {len(data.classes)} of {data.image_shape}: give "
            "matching --data"
        )
    check_classes(path, data, recipe.data)
    return source


def check_classes(path: Path, data: DataSet, name: str) -> None:
    """Raises `UsageError` for a network that has learned other classes than those of the data,
    where its checkpoint says so.
    """
    notes = checkpoint.read_manifest(path).notes
    known = notes.get("classes", list(data.classes))
    if known != list(data.classes):
        other = next(
            pair
            for pair in zip([*known, "none"], [*data.classes, "none"], strict=False)
            if pair[0] != pair[1]
        )
        raise UsageError(
            f"checkpoint '{path}' has learned the classes of {notes.get('data')} "
            f"('{other[0]}'), data '{name}' has others ('{other[1]}'): "
            "give the --data that it was trained on"
        )
