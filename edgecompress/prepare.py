"""What is checked before a run writes a file: device, data, model, and what each stage needs."""

from __future__ import annotations

from dataclasses import replace

import torch

from edgecompress.data import load_data, reconstructing
from edgecompress.errors import EnvironmentMissingError, UnknownChoiceError, UsageError
from edgecompress.models.own import runs_user_code
from edgecompress.models.registry import (
    SMALL_IMAGES,
    ModelSource,
    blank,
    build,
    default_image_size,
    seen,
    unreadable,
)
from edgecompress.recipe import Recipe
from edgecompress.run.context import Fresh, seed_everything, stage_seed
from edgecompress.run.stage import AUTO, Setup
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
        default_size=SMALL_IMAGES if recipe.model == AUTO else default_image_size(recipe.model),
    )
    if recipe.task == "reconstruction":
        if not runs_user_code(recipe.model):
            raise UsageError(
                f"model '{recipe.model}' classifies: --task reconstruction is for a network of "
                "your own (file.py:factory) that returns images"
            )
        data = reconstructing(data)
    # checkpoints first: they decide how images are read
    for stage in recipe.stages:
        if files := list(stage.checkpoint_files()):
            data = as_trained(files, recipe, data)
    source = ModelSource(recipe.model, len(data.classes), data.image_shape)
    setup = Setup(recipe, data, device, source)
    for stage in recipe.stages:
        setup = stage.check(setup)
    fresh = _own_network(setup)
    if recipe.model != AUTO and not runs_user_code(setup.source.name):
        _check_reads(setup.source, recipe.data)
    if fresh is not None or not runs_user_code(source.name):
        network = blank(setup.source)
        for stage in recipe.stages:
            stage.check_network(setup, network)
        # the network of `auto` is chosen in the run: what stands for it decides no value
        known = None if recipe.model == AUTO else network
        setup = replace(setup, network=known, fresh=fresh)
    return replace(setup, data=data)


def _check_reads(source: ModelSource, data: str) -> None:
    """Raises `UsageError` where a network of ours cannot read the samples."""
    if (reason := unreadable(source)) is not None:
        shape = "x".join(map(str, source.image_shape))
        raise UsageError(
            f"model '{source.name}' cannot read the samples of '{data}', {shape}: {reason}; give "
            "another --image-size or network"
        )


def _own_network(setup: Setup) -> Fresh | None:
    """The network of the user's own code, where the recipe names that code.

    It is built for real and reads an image: a network that cannot run, or whose output is not what
    the data's task needs, is an error of its own line, before anything is written.
    """
    source = setup.source
    if not runs_user_code(source.name) or source.name != setup.recipe.model:
        return None
    first = next((n for n, s in enumerate(setup.recipe.stages, 1) if s.stage == "train"), 1)
    seed = stage_seed(setup.recipe.seed, first)
    seed_everything(seed)
    model = build(source)
    known = seen(source)
    if known is not None:
        setup.data.check_output(source.name, known.output)
    return Fresh(source, seed, model)
