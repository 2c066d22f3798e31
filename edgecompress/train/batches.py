"""Batches of the training split, and the score on another split."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from edgecompress.data import DataSet, Images
from edgecompress.data.images import stream
from edgecompress.data.lazy import fetched
from edgecompress.data.task import Task
from edgecompress.train import distributed
from edgecompress.train.modes import compact, evaluating, outputs_of
from edgecompress.train.settings import FitSettings

__all__ = ["Batch", "batches", "compact", "evaluate", "order", "outputs_on"]


@dataclass(frozen=True)
class Batch:
    """What a loss may read: this process's B samples of a batch of `global_size`.

    `ids` (B,) are positions in the training split, `images` (B, C, h, w) float32 are what the
    network reads, `labels` (B,). `pixels` (B, C, H, W) uint8 are the same images in `view`,
    augmented but neither resized nor normalised. `logits` has the detached logits (B, K) of the
    other networks that train on this batch, by name.
    """

    ids: Tensor
    images: Tensor
    labels: Tensor
    pixels: Tensor | None = None
    view: int = 0
    logits: Mapping[str, Tensor] = field(default_factory=dict)
    task: Task = field(default_factory=Task)
    global_size: int = 0


def order(count: int, seed: int, epoch: int) -> Tensor:
    """The order (count,) int64 of the samples in `epoch`, a function of its arguments alone."""
    return torch.randperm(count, generator=stream("order", seed, epoch))


def batches(
    data: DataSet, settings: FitSettings, device: torch.device, seed: int, epoch: int, skip: int = 0
) -> Iterator[Batch]:
    """This process's share of the training batches of `epoch` (from 1), on `device`, without the
    first `skip`.

    A last batch with fewer than two samples per process is left out, since BatchNorm needs two.
    """
    split = data.train
    number = settings.view(epoch)
    augmentation = data.augmentation if settings.augmentation is None else settings.augmentation
    view = augmentation.view(len(split), data.native_shape[1:], settings.view_seed, number)
    fill = data.fill  # (C,)
    stored = split.pixels.to(device)  # (N, C, H, W) uint8
    labels = split.labels.to(device)  # (N,)

    drawn = _global_batches(len(split), settings.batch_size, seed, epoch)[skip:]
    own = [distributed.share(ids) for ids in drawn]
    for global_ids, ids, raw in zip(drawn, own, fetched(stored, own), strict=True):
        pixels = view(raw.to(device), ids, fill)  # (B, C, H, W) uint8
        images = compact(data.preprocess(pixels))  # (B, C, h, w) float32
        yield Batch(
            ids=ids,
            images=images,
            labels=data.task.targets(images, labels[ids.to(device)]),
            pixels=pixels,
            view=number,
            task=data.task,
            global_size=len(global_ids),
        )


def _global_batches(count: int, size: int, seed: int, epoch: int) -> list[Tensor]:
    """The positions (B,) of each batch, of all processes together."""
    least = 2 * distributed.size()
    drawn = order(count, seed, epoch).split(size)
    return [ids for ids in drawn if len(ids) >= least or len(ids) == count]


@torch.no_grad()
def evaluate(
    model: nn.Module, data: DataSet, split: Images, device: torch.device, size: int = 128
) -> tuple[float, float]:
    """(mean loss, score) of `model` in eval mode on `split`, by the data's task: the score of a
    classification is its accuracy, 0..1. Batches hold `size` images; the model's mode is restored.
    """
    outputs = outputs_on(model, data, split, device, size)
    labels = data.targets(split).to(device)
    return float(data.task.loss(outputs, labels)), data.task.score(outputs, labels)


@torch.no_grad()
def outputs_on(
    model: nn.Module, data: DataSet, split: Images, device: torch.device, size: int = 128
) -> Tensor:
    """The outputs (N, K) of `model` in eval mode for a split, on `device`."""
    places = distributed.share(torch.arange(len(split)))
    with evaluating(model):
        parts = [
            outputs_of(model, data.normalised(split.pixels[ids].to(device))).float()
            for ids in places.split(size)
        ]
    return distributed.gathered(torch.cat(parts), places, len(split))  # (N, K)
