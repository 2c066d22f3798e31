"""The networks of a lesson: from scratch by name, or from a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from edgecompress import checkpoint
from edgecompress.data import DataSet, Preprocess
from edgecompress.errors import UsageError
from edgecompress.models.own import runs_user_code
from edgecompress.models.registry import ModelSource, build
from edgecompress.run.context import seed_everything
from edgecompress.train.init import has_norm, unit_variance_init


@dataclass(frozen=True)
class LessonNetwork:
    """A network, what it is built from, and how it reads pixels."""

    model: nn.Module
    source: ModelSource
    preprocess: Preprocess
    anew: bool = False
    """It has learned nothing yet."""


def stored(name: str) -> Path | None:
    """The file of the checkpoint at the path `name` (a file, or the folder of a run); None where
    there is none.
    """
    path = Path(name)
    inner = path / "model.safetensors" if path.is_dir() else path
    return inner if inner.is_file() and inner.suffix == ".safetensors" else None


def network(name: str, data: DataSet | None, seed: int) -> LessonNetwork:
    """The network called `name` from scratch, or that of a checkpoint, which reads pixels as it was
    trained to.

    Without `data` it must be a checkpoint. Raises `UsageError` for one of other classes, or that
    the data's images do not fit.
    """
    path = stored(name)
    if path is not None:
        return _from_checkpoint(path, data)
    if data is None:
        raise UsageError(f"--data none needs a trained network: '{name}' is no checkpoint")
    source = ModelSource(name, len(data.classes), data.image_shape)
    seed_everything(seed)
    model = build(source)
    if not has_norm(model) and not runs_user_code(name):
        unit_variance_init(model, data.normalised(data.train.pixels[:128]))
    return LessonNetwork(model, source, data.preprocess, anew=not runs_user_code(name))


def _from_checkpoint(path: Path, data: DataSet | None) -> LessonNetwork:
    manifest = checkpoint.read_manifest(path)
    source = manifest.model
    if runs_user_code(source.name):
        raise UsageError(
            f"'{path}' is built by your own code '{source.name}': export it to a file of ours first"
        )
    usual = None if data is None else data.preprocess
    preprocess = checkpoint.preprocess_of(manifest) or usual
    if preprocess is None:
        raise UsageError(
            f"'{path}' does not say how it reads images: give the --data that it was trained on"
        )
    if data is not None:
        _check_fits(path, source, preprocess, data)
    return LessonNetwork(checkpoint.load(path)[0], source, preprocess)


def _check_fits(path: Path, source: ModelSource, preprocess: Preprocess, data: DataSet) -> None:
    """Raises `UsageError` for a network of other classes, or of images of another size."""
    if source.num_classes != len(data.classes):
        raise UsageError(
            f"'{path}' knows {source.num_classes} classes, data '{data.name}' has "
            f"{len(data.classes)}"
        )
    if preprocess.shape(data.native_shape) != source.image_shape:
        raise UsageError(
            f"'{path}' reads images {source.image_shape}, data '{data.name}' gives it "
            f"{preprocess.shape(data.native_shape)}: give the --image-size that it was trained with"
        )
