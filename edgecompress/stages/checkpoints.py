"""What stages check before a run: checkpoints against recipe and data, names against networks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edgecompress import checkpoint
from edgecompress.core import ChannelGraph
from edgecompress.core.frozen import frozen_share
from edgecompress.core.proof import trace
from edgecompress.core.stack import check_alike, check_stackable
from edgecompress.data import DataSet
from edgecompress.data.joined import part_of
from edgecompress.errors import UsageError
from edgecompress.methods.features import convolution_of
from edgecompress.methods.gradual import groups_of
from edgecompress.methods.scores import batchnorm_layers
from edgecompress.models.own import runs_user_code
from edgecompress.models.registry import ModelSource, blank
from edgecompress.models.weights import load_weights
from edgecompress.run.stage import RunSettings, Setup, TeacherSource

if TYPE_CHECKING:
    from edgecompress.stages.teacher import TeacherStage


def as_trained(paths: list[Path], recipe: RunSettings, data: DataSet) -> DataSet:
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
    size_asked = recipe.image_size is not None or recipe.resize is not None
    other_size = (wanted.resize, wanted.crop) != (data.preprocess.resize, data.preprocess.crop)
    other_values = (wanted.mean, wanted.std) != (data.preprocess.mean, data.preprocess.std)
    if (size_asked and other_size) or (recipe.normalize != "data" and other_values):
        raise UsageError(
            f"checkpoint '{paths[0]}' was trained on images read as {wanted.as_dict()}, the "
            f"options ask for {data.preprocess.as_dict()}: "
            "leave --image-size, --resize and --normalize out"
        )
    return replace(data, preprocess=wanted)


def check_teacher(stage: TeacherStage, recipe: RunSettings, data: DataSet) -> TeacherSource:
    """What a stage `teacher` will bring. Raises `UsageError` when it does not know the data's
    classes, or cannot be built.
    """
    if stage.checkpoint is None:
        source = ModelSource(str(stage.model), len(data.classes), data.image_shape)
        if stage.weights is not None:
            load_weights(source, stage.weights)
        elif not runs_user_code(source.name):
            blank(source)
        return TeacherSource(source, data.preprocess)
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
    return TeacherSource(manifest.model, preprocess)


def check_parents(
    paths: list[Path], recipe: RunSettings, data: DataSet, heads: str = "average"
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
        check_checkpoint(path, recipe, own)
        recorded = manifest.notes.get("data_digest")
        for other, part in enumerate(data.parts):
            if recorded == part.digest() != own.digest():
                raise UsageError(
                    f"network {number + 1} ('{path}') was trained on part {other + 1} of "
                    f"'{recipe.data}': give them in one order"
                )
        models.append(checkpoint.load(path, allow_code=recipe.model)[0])
    check_stackable(models, torch.zeros(1, *data.image_shape), heads=heads)
    return models


def check_checkpoint(path: Path, recipe: RunSettings, data: DataSet) -> ModelSource:
    """What the network of the checkpoint is built from. Raises `UsageError` when it is not of the
    recipe's model, or not of the data's classes and images.
    """
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


def example_of(data: DataSet) -> Tensor:
    """One zero image (1, C, H, W) of the shape of `data`."""
    return torch.zeros(1, *data.image_shape)


def check_cuttable(blank: nn.Module, data: DataSet) -> None:
    """Raises `UsageError`, with the reasons, where no channel of `blank` can be removed."""
    graph = trace(blank, example_of(data))
    if not graph.groups:
        raise uncuttable(blank, graph)


def uncuttable(blank: nn.Module, graph: ChannelGraph) -> UsageError:
    """The error for a network of which no channel can be removed, with the reasons."""
    return UsageError(
        f"no channel of {type(blank).__name__} can be removed: {frozen_share(blank, graph).text()};"
        " give another network, or train and quantize this one"
    )


def check_layers(blank: nn.Module, data: DataSet, names: Iterable[str], criterion: str) -> None:
    """Raises `UsageError` when `blank` has not the layers `names`, or cannot have the criterion."""
    wanted = sorted(set(names))
    if not wanted and criterion != "bn":
        return
    graph = trace(blank, example_of(data))
    for name in wanted:
        groups_of(graph, name)
    if criterion == "bn":
        batchnorm_layers(blank, graph)


def check_feature_layers(
    pairs: Mapping[str, str], blank: nn.Module, teacher: TeacherSource | None
) -> None:
    """Raises `UsageError` when a pair names a convolution that student or teacher has not."""
    for mine, theirs in pairs.items():
        convolution_of(blank, mine, "student")
        if teacher is not None and not runs_user_code(teacher.source.name):
            convolution_of(blank(teacher.source), theirs, "teacher")


def check_pair_stacks(setup: Setup) -> None:
    """Raises `UsageError` where two networks of the recipe's kind could not be merged."""
    pair = [blank(setup.source), blank(setup.source)]
    check_stackable(pair, torch.zeros(1, *setup.data.image_shape))
