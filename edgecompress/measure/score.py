"""The score of an ONNX file on the test split of a data set (needs torch for the data)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from typing_extensions import NotRequired, TypedDict

from edgecompress.data import DataSet, Preprocess, load_data, reconstructing
from edgecompress.data.task import Reconstruction
from edgecompress.errors import UsageError
from edgecompress.measure.prediction import statistics
from edgecompress.measure.runtime import Array, Runtime
from edgecompress.proportions import interval

BATCH = 32
"""Images per run."""


class Score(TypedDict):
    """The score on a test split of `images` samples: an accuracy (0..1) with `n` and its 95 %
    interval (Wilson), or a regression's `metric` and `loss`.
    """

    model: str
    data: str
    split: str
    images: int
    n: NotRequired[int]
    ci95: NotRequired[list[float]]
    accuracy: NotRequired[float]
    metric: NotRequired[float]
    metric_name: NotRequired[str]
    loss: NotRequired[float]


def score_on(
    loaded: Runtime, name: str, image_size: int | None = None, skip_bad: bool = False
) -> Score:
    """The score of a loaded file on the test split of the data called `name`.

    Images are read as the file's metadata say. Raises `UsageError` for a file of other classes, or
    that does not say how it reads images.
    """
    return judged_on(loaded, name, image_size, skip_bad).score


@dataclass(frozen=True)
class JudgedFile:
    """The score of a file, and which samples it has right `(N,)`; None for a regression."""

    score: Score
    right: Tensor | None


def judged_on(
    loaded: Runtime, name: str, image_size: int | None = None, skip_bad: bool = False
) -> JudgedFile:
    """`score_on`, with the single samples: two files on the same data are compared in pairs."""
    data = _data(loaded, name, image_size, skip_bad)
    # an image that is the target is read as the file reads it, too
    data = replace(data, preprocess=_preprocess(loaded, data, image_size))
    batches = _batches(loaded, data)
    outputs = torch.from_numpy(loaded.run_all(batches, finite=True))
    _check_outputs(loaded, data, name, tuple(outputs.shape[1:]))
    labels = data.targets(data.test)
    score: Score = {
        "model": str(loaded.path),
        "data": name,
        "split": "test",
        "images": len(data.test),
    }
    value = data.task.score(outputs, labels)
    right = data.task.correct(outputs, labels)
    if right is not None:
        low, high = interval(int(right.sum()), len(labels))
        score |= {"accuracy": value, "n": len(labels), "ci95": [low, high]}
        return JudgedFile(score, right)
    score |= {
        "metric": value,
        "metric_name": data.task.metric,
        "loss": float(data.task.loss(outputs, labels)),
    }
    return JudgedFile(score, None)


def _data(loaded: Runtime, name: str, image_size: int | None, skip_bad: bool) -> DataSet:
    """The data, at the size that the file reads; its classes are those of the file."""
    metadata = loaded.metadata
    shape = metadata.integers("image_shape") or loaded.input_shape
    if not shape:
        raise UsageError(f"'{loaded.path}' reads inputs of shape (), which are no images")
    size = (
        image_size
        or metadata.integer("resize")
        or (shape[-1] if name.startswith("folder:") else None)
    )
    data = load_data(name, image_size=size, skip_bad=skip_bad)
    if metadata.text("task") == "reconstruction":
        data = reconstructing(data)
    if "mean" not in metadata and not loaded.reads_pixels:
        raise UsageError(
            f"'{loaded.path}' has no input normalisation in its metadata: how it reads "
            f"'{name}' is not known; export it anew"
        )
    known = metadata.texts("classes")
    if known is not None and known != list(data.classes):
        raise UsageError(
            f"'{loaded.path}' has classes {known[:4]}..., data '{name}' has "
            f"{list(data.classes)[:4]}..."
        )
    return data


def _preprocess(loaded: Runtime, data: DataSet, image_size: int | None) -> Preprocess:
    """How the file reads pixels."""
    metadata, own = loaded.metadata, data.preprocess
    if loaded.reads_pixels:
        return own
    for key in ("mean", "std"):
        statistics(loaded, key, data.native_shape[0])
    if "resize" in metadata and image_size is None:
        resize, crop = metadata.integer("resize"), metadata.integer("crop")
        own = replace(own, resize=resize, crop=crop, scale=metadata.number("scale") or 255)
    mean, std = metadata.numbers("mean"), metadata.numbers("std")
    return replace(own, mean=tuple(mean or own.mean), std=tuple(std or own.std))


def _batches(loaded: Runtime, data: DataSet) -> Iterator[Array]:
    """The test split as the file reads it."""
    for part in data.test.pixels.split(BATCH):
        if loaded.reads_pixels:
            yield part.permute(0, 2, 3, 1).contiguous().numpy()
        else:
            yield data.normalised(part).numpy()


def _check_outputs(loaded: Runtime, data: DataSet, name: str, shape: tuple[int, ...]) -> None:
    """Raises `UsageError` unless the outputs of a sample have one number per class, or are an image
    where the file reconstructs its input.
    """
    if isinstance(data.task, Reconstruction):
        if shape != loaded.input_shape or loaded.reads_pixels:
            raise UsageError(
                f"'{loaded.path}' gives outputs of shape {shape} per sample, which are no image as "
                "it reads them: export it without --embed-preprocess"
            )
        return
    if len(shape) != 1:
        raise UsageError(
            f"'{loaded.path}' gives outputs of shape {shape} per sample: a number for each "
            "class is needed"
        )
    wanted = len(data.classes)
    if data.task.metric == "accuracy" and shape[0] != wanted:
        raise UsageError(
            f"'{loaded.path}' has {shape[0]} outputs, data '{name}' has {wanted} classes: give "
            "the data that it was trained on"
        )
