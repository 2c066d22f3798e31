"""The sine problem of Pašen (2022): x ~ U(0, 1), y = sin(10 pi x) + z, where z is normal noise with
a standard deviation of 0.2.

The variance of the noise, 0.04, is the floor of the test loss (mean squared error).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from edgecompress.data.images import DataSet, Images, stream
from edgecompress.data.preprocess import Preprocess
from edgecompress.data.task import Regression

NOISE_STD = 0.2
FLOOR = NOISE_STD**2


@dataclass(frozen=True)
class Samples:
    """Inputs `x` (N, 1) and targets `y` (N, 1), float32."""

    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class SineData:
    """Three splits, drawn independently of the seed of a run."""

    train: Samples
    validation: Samples
    test: Samples


def load_sine(train: int = 10_000, held: int = 10_000) -> SineData:
    """`train` training samples, and `held` samples each for validation and test."""

    def draw(name: str, count: int) -> Samples:
        generator = stream("sine", name)
        x = torch.rand(count, 1, generator=generator, dtype=torch.float64)
        noise = NOISE_STD * torch.randn(count, 1, generator=generator, dtype=torch.float64)
        return Samples(x.float(), (torch.sin(10 * math.pi * x) + noise).float())

    return SineData(draw("train", train), draw("validation", held), draw("test", held))


def sine_data_set() -> DataSet:
    """The same samples as a data set of images (N, 1, 1, 1) float32 with labels (N, 1)."""
    data = load_sine()
    train, validation, test = (
        Images(part.x[:, :, None, None], part.y)
        for part in (data.train, data.validation, data.test)
    )
    return DataSet(
        name="sine",
        label="sine",
        classes=("y",),
        train=train,
        validation=validation,
        test=test,
        preprocess=Preprocess((0.0,), (1.0,), scale=1),
        task=Regression(),
    )
