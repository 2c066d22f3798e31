"""Data-parallel training in several processes started by `torchrun`: each takes its share of every
batch, and all hold the same network.

    torchrun --nproc-per-node 8 -m edgecompress run recipes/pasen2022/imagenet.yaml --variant full

Every process runs the same stages. Gradients are averaged over all samples of a batch, validation
is divided among the processes, and decisions (scores, weights at the end of an epoch) are those of
rank 0, which alone writes files and prints. Without torchrun every function here does nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

Key = TypeVar("Key")


def rank() -> int:
    """This process's rank, from 0."""
    return dist.get_rank() if _active() else 0


def size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if _active() else 1


def _active() -> bool:
    return dist.is_available() and dist.is_initialized()


def launched() -> bool:
    """Did torchrun start this process as one of several?"""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def own_device(name: str) -> str:
    """The device of this process. Under torchrun, `auto`, `cuda` and `cuda:N` become the GPU of its
    local rank.
    """
    gpu = re.fullmatch(r"auto|cuda(:\d+)?", name)
    if launched() and gpu and torch.cuda.is_available():
        return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"
    return name


def start(device: torch.device) -> None:
    """Join the process group, if torchrun started this process: NCCL between GPUs, gloo between
    CPUs, and where processes share a GPU, which NCCL refuses.
    """
    if launched() and not _active():
        backend = "gloo"
        if device.type == "cuda":
            torch.cuda.set_device(device)
            here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
            backend = "nccl" if here <= torch.cuda.device_count() else "gloo"
        dist.init_process_group(backend)


def stop() -> None:
    """Leave the process group; afterwards this process works alone."""
    if _active():
        dist.barrier()
        dist.destroy_process_group()


def share(ids: Tensor) -> Tensor:
    """This process's part (b,) of the samples `ids` (B,) of a batch: every `size()`-th."""
    return ids[rank() :: size()]


@torch.no_grad()
def sum_gradients_(parameters: Iterable[nn.Parameter], weight: float) -> None:
    """Replace every gradient by its sum over the processes, each times the `weight` of its process
    (its share of the batch), in place.
    """
    if size() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients]) * weight
    dist.all_reduce(flat)
    start = 0
    for gradient in gradients:
        end = start + gradient.numel()
        gradient.copy_(flat[start:end].reshape(gradient.shape))
        start = end


@torch.no_grad()
def agree_(model: nn.Module) -> None:
    """Overwrite the parameters and buffers of `model` with those of rank 0, in place."""
    if size() > 1:
        for tensor in [*model.parameters(), *model.buffers()]:
            dist.broadcast(tensor.data, 0)


def agreed(values: Mapping[Key, Tensor], device: torch.device) -> None:
    """Overwrite the tensors `values` (...), which every process has in the same order, with those
    of rank 0, in place.
    """
    if size() > 1:
        for tensor in values.values():
            sent = tensor.to(device).contiguous()
            dist.broadcast(sent, 0)
            tensor.copy_(sent)


def agreed_count(value: int, device: torch.device) -> int:
    """The `value` of rank 0."""
    if size() == 1:
        return value
    sent = torch.tensor(value, device=device)
    dist.broadcast(sent, 0)
    return int(sent)


def summed(value: float, device: torch.device) -> float:
    """The sum of `value` over all processes."""
    if size() == 1:
        return value
    total = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return float(total)


def gathered(own: Tensor, places: Tensor, count: int) -> Tensor:
    """(count, ...) with the rows `own` (B, ...) of this process at `places` (B,), and those of the
    other processes at theirs.
    """
    if size() == 1:
        return own
    rows = own.new_zeros((count, *own.shape[1:]))
    rows[places.to(own.device)] = own
    dist.all_reduce(rows)
    return rows
