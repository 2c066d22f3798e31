"""`A+B`: two or more data sets as one, for a network with a head for each (`merge --heads
separate`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import torch

from edgecompress.data.images import DataSet, Images, channel_statistics
from edgecompress.data.preprocess import Preprocess
from edgecompress.data.task import Heads, Task
from edgecompress.errors import UsageError


def joined(parts: Sequence[DataSet]) -> DataSet:
    """The images of all `parts`, whose labels follow one another; classes are called `part: class`.

    Raises `UsageError` for parts that are no classification, or whose images differ in shape.
    """
    shapes = {part.native_shape for part in parts}
    name = "+".join(part.name for part in parts)
    if any(type(part.task) is not Task for part in parts):
        raise UsageError(
            f"data '{name}' joins what is no plain classification: give digits, cifar10, "
            "folder:DIR, ..."
        )
    if len(shapes) > 1:
        raise UsageError(
            f"data '{name}' joins images of shapes {sorted(shapes)}: pass --image-size so "
            "that they are alike"
        )
    sizes = tuple(len(part.classes) for part in parts)
    starts = [end - size for end, size in zip(accumulate(sizes), sizes, strict=True)]

    def together(split: str) -> Images:
        pieces: list[Images] = [getattr(part, split) for part in parts]
        labels = [piece.labels + start for piece, start in zip(pieces, starts, strict=True)]
        return Images(torch.cat([piece.pixels[:] for piece in pieces]), torch.cat(labels))

    if not all(isinstance(part.train.pixels, torch.Tensor) for part in parts):
        raise UsageError(
            f"data '{name}' does not fit into memory: join smaller images (--image-size)"
        )
    train = together("train")
    classes = tuple(f"{part.name}: {label}" for part in parts for label in part.classes)
    return DataSet(
        name,
        " + ".join(part.label for part in parts),
        classes,
        train,
        together("validation"),
        together("test"),
        Preprocess(*channel_statistics(train.pixels)),
        parts[0].augmentation,
        tuple(f for part in parts for f in part.skipped),
        Heads(sizes),
        tuple(parts),
    )


def part_of(data: DataSet, number: int) -> DataSet:
    """Part `number` of joined `data`, its images read as the whole's are."""
    return replace(data.parts[number], preprocess=data.preprocess)
