"""`A+B`: two or more data sets as one, for a network with one head per data set (`merge --heads
separate`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import torch
from torch import Tensor

from edgecompress.data.images import DataSet, Images, pixel_statistics
from edgecompress.data.preprocess import PIXELS, Preprocess
from edgecompress.data.task import Heads, Task
from edgecompress.errors import UsageError


def joined(parts: Sequence[DataSet]) -> DataSet:
    """The images of all `parts` in order, with the labels of each part offset by the classes before
    it; classes are called `part: class`.

    Raises `UsageError` for parts that are not plain classifications, whose images differ in shape,
    or that do not fit into memory.
    """
    name = "+".join(part.name for part in parts)
    _check(parts, name)
    sizes = tuple(len(part.classes) for part in parts)
    offsets = [end - size for end, size in zip(accumulate(sizes), sizes, strict=True)]
    train = _concatenated([part.train for part in parts], offsets)
    return DataSet(
        name=name,
        label=" + ".join(part.label for part in parts),
        classes=tuple(f"{part.name}: {label}" for part in parts for label in part.classes),
        train=train,
        validation=_concatenated([part.validation for part in parts], offsets),
        test=_concatenated([part.test for part in parts], offsets),
        preprocess=Preprocess(*pixel_statistics(train.pixels)),
        augmentation=parts[0].augmentation,
        skipped=tuple(file for part in parts for file in part.skipped),
        notes=tuple(note for part in parts for note in part.notes),
        task=Heads(sizes),
        parts=tuple(parts),
    )


def _check(parts: Sequence[DataSet], name: str) -> None:
    if any(type(part.task) is not Task or part.preprocess.scale != PIXELS for part in parts):
        raise UsageError(
            f"data '{name}' has a part that is no plain classification of images: give digits, "
            "cifar10, folder:DIR, ..."
        )
    shapes = {part.native_shape for part in parts}
    if len(shapes) > 1:
        raise UsageError(
            f"data '{name}' joins images of shapes {sorted(shapes)}: pass --image-size so "
            "that they are alike"
        )
    if not all(isinstance(part.train.pixels, Tensor) for part in parts):
        raise UsageError(
            f"data '{name}' does not fit into memory: join smaller images (--image-size)"
        )


def _concatenated(splits: Sequence[Images], offsets: Sequence[int]) -> Images:
    """The images of all splits, with each split's labels shifted by its offset."""
    labels = [split.labels + offset for split, offset in zip(splits, offsets, strict=True)]
    return Images(torch.cat([split.pixels[:] for split in splits]), torch.cat(labels))


def part_of(data: DataSet, number: int) -> DataSet:
    """Part `number` of joined `data`, with the preprocessing of the joined data set."""
    return replace(data.parts[number], preprocess=data.preprocess)
