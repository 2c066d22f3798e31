"""Batches of a training split, and the accuracy on another one. Whole batches are made on the device where the network is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgecompress.data import DataSet, Images
from edgecompress.data.images import stream
from edgecompress.train.settings import FitSettings


@dataclass(frozen=True)
class Batch:
    """What a loss may look at.

    Sample `ids` (B,) in the training split, `images` (B, C, h, w) as the network reads them, `labels` (B,). `pixels` (B, C, H, W) uint8 are
    the same images in `view`, augmented but neither resized nor normalised. `logits` (B, K) by name are those of the other networks that
    train on this batch, detached.
    """

    ids: Tensor
    images: Tensor
    labels: Tensor
    pixels: Tensor | None = None
    view: int = 0
    logits: Mapping[str, Tensor] = field(default_factory=dict)


def order(count: int, seed: int, epoch: int) -> Tensor:
    """The order (count,) in which `epoch` goes through the samples: a function of the seed and the epoch alone."""
    return torch.randperm(count, generator=stream("order", seed, epoch))


def compact(images: Tensor) -> Tensor:
    """`images` (B, C, H, W) in channels_last order on a CPU, where convolutions run faster on it."""
    return images.contiguous(memory_format=torch.channels_last) if images.device.type == "cpu" and images.dim() == 4 else images


def batches(data: DataSet, settings: FitSettings, device: torch.device, seed: int, epoch: int) -> Iterator[Batch]:
    """The training batches of `epoch` (from 1); a last batch of one sample is left out (BatchNorm needs two)."""
    split, number = data.train, settings.view(epoch)
    augmentation = data.augmentation if settings.augmentation is None else settings.augmentation
    view = augmentation.view(len(split), data.native_shape[1:], settings.view_seed, number)
    fill = torch.tensor([round(255 * m) for m in data.preprocess.mean])
    stored, labels = split.pixels.to(device), split.labels.to(device)
    for ids in order(len(split), seed, epoch).split(settings.batch_size):
        if len(ids) < 2 <= len(split):
            continue
        places = ids.to(device)
        pixels = view(stored[places], ids, fill)
        yield Batch(ids, compact(data.preprocess(pixels)), labels[places], pixels, number)


@torch.no_grad()
def evaluate(model: nn.Module, data: DataSet, split: Images, device: torch.device, size: int = 128) -> tuple[float, float]:
    """(mean cross-entropy, accuracy in 0..1) of `model` on `split`, in eval mode; the model's mode is put back."""
    was_training = model.training
    model.eval()
    loss, correct = 0.0, 0
    for start in range(0, len(split), size):
        labels = split.labels[start : start + size].to(device)
        logits = model(compact(data.normalised(split.pixels[start : start + size].to(device))))
        loss += float(F.cross_entropy(logits, labels, reduction="sum"))
        correct += int((logits.argmax(1) == labels).sum())
    model.train(was_training)
    return loss / len(split), correct / len(split)
