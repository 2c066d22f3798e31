"""Batches of a training split, and the accuracy on another one. Whole batches are made on the
device where the network is.
"""

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
from edgecompress.train.settings import FitSettings


@dataclass(frozen=True)
class Batch:
    """What a loss may look at: this process's share of a batch of `whole` samples.

    Sample `ids` (B,) in the training split, `images` (B, C, h, w) as the network reads them,
    `labels` (B,). `pixels` (B, C, H, W) uint8 are the same images in `view`, augmented but neither
    resized nor normalised. `logits` (B, K) by name are those of the other networks that train on
    this batch, detached.
    """

    ids: Tensor
    images: Tensor
    labels: Tensor
    pixels: Tensor | None = None
    view: int = 0
    logits: Mapping[str, Tensor] = field(default_factory=dict)
    task: Task = field(default_factory=Task)
    whole: int = 0


def order(count: int, seed: int, epoch: int) -> Tensor:
    """The order (count,) in which `epoch` goes through the samples: a function of the seed and the
    epoch alone.
    """
    return torch.randperm(count, generator=stream("order", seed, epoch))


def compact(images: Tensor) -> Tensor:
    """`images` (B, C, H, W) in channels_last order on a CPU, where convolutions run faster on
    it.
    """
    return (
        images.contiguous(memory_format=torch.channels_last)
        if images.device.type == "cpu" and images.dim() == 4
        else images
    )


def batches(
    data: DataSet, settings: FitSettings, device: torch.device, seed: int, epoch: int, skip: int = 0
) -> Iterator[Batch]:
    """This process's share of the training batches of `epoch` (from 1), without the first `skip`.

    A last batch that would leave a process with less than two samples is left out (BatchNorm needs
    two).
    """
    split, number = data.train, settings.view(epoch)
    augmentation = data.augmentation if settings.augmentation is None else settings.augmentation
    view = augmentation.view(len(split), data.native_shape[1:], settings.view_seed, number)
    fill = torch.tensor([round(255 * m) for m in data.preprocess.mean])
    stored, labels = split.pixels.to(device), split.labels.to(device)
    drawn = order(len(split), seed, epoch).split(settings.batch_size)
    drawn = [ids for ids in drawn if len(ids) >= 2 * distributed.size() or len(ids) == len(split)]
    drawn = drawn[skip:]
    own = [distributed.share(ids) for ids in drawn]
    for whole, ids, kept in zip(drawn, own, fetched(stored, own), strict=True):
        pixels = view(kept.to(device), ids, fill)
        images = compact(data.preprocess(pixels))
        yield Batch(
            ids, images, labels[ids.to(device)], pixels, number, task=data.task, whole=len(whole)
        )


@torch.no_grad()
def evaluate(
    model: nn.Module, data: DataSet, split: Images, device: torch.device, size: int = 128
) -> tuple[float, float]:
    """(mean loss, score) of `model` on `split` by the data's task (a classification's score is the
    accuracy), in eval mode.

    The model's mode is put back.
    """
    was_training = model.training
    model.eval()
    places = distributed.share(torch.arange(len(split)))
    found = [
        model(compact(data.normalised(split.pixels[part].to(device)))).float()
        for part in places.split(size)
    ]
    model.train(was_training)
    outputs, labels = (
        distributed.gathered(torch.cat(found), places, len(split)),
        split.labels.to(device),
    )
    return float(data.task.loss(outputs, labels)), data.task.score(outputs, labels)
