"""Training on several processes, as `torchrun` starts them: each takes its share of every batch,
and all hold the same network.

    torchrun --nproc-per-node 8 -m edgecompress run recipes/pasen2022/imagenet.yaml --variant full

Every process runs the same stages; gradients are averaged over all samples of a batch, validation
is shared out, and what is decided (scores, weights at the end of an epoch) is the first process's.
Only the first one writes files and speaks. Without torchrun every function here does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if _active() else 0


def size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if _active() else 1


def _active() -> bool:
    return dist.is_available() and dist.is_initialized()


def asked_for() -> bool:
    """Did torchrun start this process, with others?"""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def own_device(name: str) -> str:
    """The device of this process: with `auto` or `cuda` under torchrun, the graphics card of its
    local rank.
    """
    if asked_for() and name in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"
    return name


def start(device: torch.device) -> None:
    """Meet the other processes, where torchrun started them; NCCL between graphics cards, gloo
    between processors.
    """
    if asked_for() and not _active():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")


def stop() -> None:
    """Part from the others: from here on this process works alone."""
    if _active():
        dist.barrier()
        dist.destroy_process_group()


def share(ids: Tensor) -> Tensor:
    """This process's part of the samples `ids` (B,) of a batch."""
    return ids[rank() :: size()]


@torch.no_grad()
def sum_gradients_(parameters: Iterable[nn.Parameter], weight: float) -> None:
    """Replace every gradient by the sum over processes of `weight` times their own, in place;
    `weight`: a process's share of the batch.
    """
    if size() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients]) * weight
    dist.all_reduce(flat)
    place = 0
    for gradient in gradients:
        gradient.copy_(flat[place : place + gradient.numel()].reshape(gradient.shape))
        place += gradient.numel()


@torch.no_grad()
def agree_(model: nn.Module) -> None:
    """Give `model` the parameters and buffers of the first process, in place."""
    if size() > 1:
        for tensor in [*model.parameters(), *model.buffers()]:
            dist.broadcast(tensor.data, 0)


def agreed(values: Mapping[Any, Tensor], device: torch.device) -> None:
    """Give the tensors `values`, which every process has in the same order, the first process's
    numbers, in place.
    """
    if size() > 1:
        for tensor in values.values():
            sent = tensor.to(device).contiguous()
            dist.broadcast(sent, 0)
            tensor.copy_(sent)


def summed(value: float, device: torch.device) -> float:
    """The sum of `value` over all processes."""
    if size() == 1:
        return value
    total = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return float(total)


def gathered(own: Tensor, places: Tensor, count: int) -> Tensor:
    """(count, ...) with the rows `own` of this process at `places`, and those of the others at
    theirs.
    """
    if size() == 1:
        return own
    whole = own.new_zeros((count, *own.shape[1:]))
    whole[places.to(own.device)] = own
    dist.all_reduce(whole)
    return whole
