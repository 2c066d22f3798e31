"""What is checked before a run writes a file: device, data, model, and what each stage needs."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from edgecompress.core.symbolic import meta_copy
from edgecompress.data import load_data
from edgecompress.errors import EnvironmentMissingError, UnknownChoiceError, UsageError, blamed
from edgecompress.models.registry import (
    ModelSource,
    build,
    default_image_size,
    runs_user_code,
)
from edgecompress.recipe import Recipe
from edgecompress.run.stage import Setup
from edgecompress.stages.checkpoints import as_trained
from edgecompress.train import distributed


def pick_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:N` as a device; under torchrun each process has its own.

    Raises `EnvironmentMissingError` when CUDA is requested and absent.
    """
    name = distributed.own_device(name)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    kind, _, number = name.partition(":")
    if kind != "cuda" or (number and not number.isdigit()):
        raise UnknownChoiceError("--device", name, ("auto", "cpu", "cuda", "cuda:N"))
    if not torch.cuda.is_available() or int(number or 0) >= torch.cuda.device_count():
        raise EnvironmentMissingError(
            f"device '{name}' is not here: use --device cpu, or pip install torch with CUDA"
        )
    return torch.device(name)


def prepare(recipe: Recipe) -> Setup:
    """The setup of a run, after every stage has checked it. Writes nothing.

    Raises what `Stage.check` and `Stage.check_network` raise.
    """
    device = pick_device(recipe.device)
    data = load_data(
        recipe.data,
        image_size=recipe.image_size,
        resize=recipe.resize,
        normalize=recipe.normalize,
        skip_bad=recipe.skip_bad,
        default_size=default_image_size(recipe.model),
    )
    # checkpoints first: they decide how images are read
    for stage in recipe.stages:
        if files := list(stage.checkpoint_files()):
            data = as_trained(files, recipe, data)
    source = ModelSource(recipe.model, len(data.classes), data.image_shape)
    setup = Setup(recipe, data, device, source)
    for stage in recipe.stages:
        setup = stage.check(setup)
    if (blank := blank_network(setup)) is not None:
        for stage in recipe.stages:
            stage.check_network(setup, blank)
    return replace(setup, data=data, network=blank)


def blank_network(setup: Setup) -> nn.Module | None:
    """The network of a run on the meta device; None where its code is not what the user named.

    The user's own code is built once for real, and reads an image: a network that cannot run is
    an error of its own line, before anything is written.
    """
    if not runs_user_code(setup.source.name):
        with torch.device("meta"):
            return build(setup.source)
    if setup.source.name != setup.recipe.model:
        return None
    model = build(setup.source).eval()
    try:
        with torch.no_grad():
            model(torch.zeros(1, *setup.source.image_shape))
    except Exception as error:  # whatever the user's code raises
        shape = "x".join(map(str, setup.source.image_shape))
        raise UsageError(
            f"model '{setup.source.name}' cannot read an image of {shape}: {blamed(error)}"
        ) from error
    return meta_copy(model)
