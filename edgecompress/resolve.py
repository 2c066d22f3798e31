"""Values that a recipe leaves open and that are known before the run: from the data, from the
network, from this machine. What depends on a network that is cut on the way stays open.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import nn, zeros

from edgecompress.core.simplify import find_pools, fold_pool
from edgecompress.measure import machine
from edgecompress.run.stage import Setup, Stage
from edgecompress.stages.fields import FromScratch, Training
from edgecompress.stages.train import TrainStage
from edgecompress.stages.training import pretrained
from edgecompress.train.init import has_norm
from edgecompress.train.settings import LARGE_SPLIT, SMALL_PARAMS, FitSettings, default_settings

MACHINE, DATA, NETWORK = "this machine", "from the data", "from network and data"
DERIVED = (MACHINE, DATA, NETWORK)
"""Origins of values that nobody gave: a resumed run may derive others."""


def resolved(setup: Setup) -> tuple[Setup, dict[str, str]]:
    """The setup with the recipe's open values, and the origin of each by its place
    (`stages.0.epochs`).
    """
    recipe, origins = setup.recipe, {}
    values: dict[str, object] = {}
    for name, value, origin in _of_run(setup):
        if getattr(recipe, name) is None and value is not None:
            values[name], origins[name] = value, origin
    stages = []
    for number, stage in enumerate(recipe.stages):
        derived = {}
        for name, chosen, origin in _of_stage(setup, stage):
            if getattr(stage, name) is None:
                derived[name], origins[f"stages.{number}.{name}"] = chosen, origin
        stages.append(stage.model_copy(update=derived))
    recipe = recipe.model_copy(update={**values, "stages": tuple(stages)})
    return replace(setup, recipe=recipe), origins


def _of_run(setup: Setup) -> Iterator[tuple[str, int | None, str]]:
    yield "threads", machine.threads(), MACHINE
    preprocess = setup.data.preprocess
    if setup.recipe.resize is None and preprocess.crop is not None:
        yield "image_size", preprocess.crop, DATA
        if preprocess.resize != preprocess.crop and setup.recipe.image_size is None:
            yield "resize", preprocess.resize, DATA


def _of_stage(setup: Setup, stage: Stage) -> Iterator[tuple[str, float | str, str]]:
    """(field, value, origin) of what `fit_settings` will choose for `stage`."""
    if not isinstance(stage, Training):
        return
    data, large = setup.data, len(setup.data.train) > LARGE_SPLIT
    augmentation = data.augmentation
    for name in ("flip", "shift", "cutout"):
        yield name, getattr(augmentation, name), DATA
    chosen = _defaults(setup, stage)
    plain = FitSettings(epochs=0, batch_size=128 if large else 32)
    yield "batch_size", (chosen or plain).batch_size, DATA
    if not large:
        yield "dropout", 0.0, DATA
    if chosen is not None and stage.trains_one_network:
        yield "optimizer", chosen.optimizer, NETWORK
    if chosen is not None and stage.trains_one_network and _alone(stage):
        yield "learning_rate", chosen.learning_rate, NETWORK
    if setup.recipe.time is not None and stage.share_of_time:
        return  # as many epochs as fit
    own = None if chosen is None else chosen.epochs
    # a network that is not small may be cut until it is
    epochs = stage.usual_epochs(own, large=large, small=_small(setup.network) or None)
    if epochs is not None:
        by_data = epochs == stage.usual_epochs(None, large=large, small=None)
        yield "epochs", epochs, DATA if by_data else NETWORK


def _alone(stage: Stage) -> bool:
    """Does it train one network? A teacher that trains at the same time has a rate of its own."""
    return getattr(stage, "mode", "offline") == "offline"


def _defaults(setup: Setup, stage: Training) -> FitSettings | None:
    """The defaults for the network that `stage` trains; None where they depend on its cuts."""
    network = setup.network
    if network is None:
        return None
    normalised = has_norm(network)
    optimizer = stage.optimizer_for(
        normalised=normalised,
        large=len(setup.data.train) > LARGE_SPLIT,
        pretrained=pretrained(setup.recipe),
    )
    if isinstance(stage, TrainStage):
        network = _as_trained(setup, stage, network)
    elif not (normalised or _small(network)):
        return None
    return default_settings(network, setup.data, None, normalised, optimizer)


def _as_trained(setup: Setup, stage: FromScratch, network: nn.Module) -> nn.Module:
    """The network in the coordinates that the stage trains it in: with its pools folded."""
    if stage.weights is not None or has_norm(network) or setup.data.task.metric != "accuracy":
        return network
    for fold in find_pools(network, zeros(1, *setup.source.image_shape)):
        network = fold_pool(network, fold)
    return network


def _small(network: nn.Module | None) -> bool:
    """Fewer parameters than a plain network needs care with; cut networks have fewer still."""
    return network is not None and sum(p.numel() for p in network.parameters()) < SMALL_PARAMS
