"""The ledger of a label trace, and the tensors of labels that it is kept on.

A *label* is an integer that stands for a channel; a tensor of labels has the shape of the
activation that it shadows. Label 0 is anonymous: a value that belongs to no layer's axis. What
meets an anonymous value is frozen.

Labels are mostly constant along batch, height and width, so they are kept as expanded tensors
(stride 0) and narrowed before anything is computed on them.
"""

from __future__ import annotations

import torch
from torch import Tensor

Axis = tuple[str, str]
"""(layer, axis of the layer), e.g. `("features.0", "out")`."""


class Ledger:
    """What a label trace finds out. It starts with label 0, which is frozen.

    recorded   {(layer, axis): labels (size,)}   which label each position of each axis has
    edges      [(n, 2), ...]                     pairs of labels that an operation couples
    freezes    [(labels, reason), ...]           labels that must stay, and why
    products   [(labels, number), ...]           products of activations: what each position of a
                                                 channel costs, in MACs of the whole batch
    count                                        number of labels in use
    line                                         where the code calls what is being looked at
    called     [(labels, reason, line), ...]     where the code calls what freezes
    """

    def __init__(self) -> None:
        self.recorded: dict[Axis, Tensor] = {}
        self.edges: list[Tensor] = []
        self.freezes: list[tuple[Tensor, str]] = [
            (torch.zeros(1, dtype=torch.long), "meets a value that no layer owns")
        ]
        self.products: list[tuple[Tensor, float]] = []
        self.count = 1
        self.line = ""
        self.called: list[tuple[Tensor, str, str]] = []

    def fresh(self, size: int) -> Tensor:
        """`size` labels never used before, (size,)."""
        labels = torch.arange(self.count, self.count + size)
        self.count += size
        return labels

    def couple(self, left: Tensor, right: Tensor) -> None:
        """The labels at the same position of `left` and `right`, (...) and broadcastable, are one
        channel.
        """
        left, right = torch.broadcast_tensors(narrowed(left), narrowed(right))
        pairs = torch.stack([left.reshape(-1), right.reshape(-1)], 1)
        self.edges.append(pairs[pairs[:, 0] != pairs[:, 1]])

    def multiply(self, labels: Tensor, macs: float) -> None:
        """A product of activations costs `macs`, in equal parts for each of the channels `labels`
        (...) that it is made of.
        """
        positions = narrowed(labels).reshape(-1)
        self.products.append((positions, macs / len(positions)))

    def freeze(self, labels: object, reason: str) -> None:
        """All labels in `labels` (a tensor, or tensors in containers) must stay, for `reason`."""
        for part in flat(labels):
            if isinstance(part, Tensor):
                held = narrowed(part).unique()
                self.freezes.append((held, reason))
                if self.line:
                    self.called.append((held, reason, self.line))

    def record(self, layer: str, axis: str, labels: Tensor) -> Tensor:
        """Enter the labels (size,) of an axis; returns those of its first call.

        A layer that is called twice has one set of weights, so the labels of its calls are coupled.
        """
        known = self.recorded.setdefault((layer, axis), labels)
        if known is not labels:
            self.couple(known, labels)
        return known

    def along(self, labels: Tensor, dim: int, reader: str) -> Tensor:
        """The labels (size,) along `dim` of `labels` (...), frozen when they vary along another
        dimension too.

        `reader` names the operation in the reason.
        """
        slim = narrowed(labels)
        flattened = slim.movedim(dim, 0).reshape(slim.shape[dim], -1)
        if flattened.shape[1] > 1 and bool((flattened != flattened[:, :1]).any()):
            self.freeze(labels, f"{reader} reads channels along more than one dimension")
        return flattened[:, 0].expand(labels.shape[dim])


def narrowed(labels: Tensor) -> Tensor:
    """`labels` (...) with every expanded (stride 0) dimension narrowed to 1: the same values,
    without the copies.
    """
    for dim, stride in enumerate(labels.stride()):
        if stride == 0 and labels.shape[dim] > 1:
            labels = labels.narrow(dim, 0, 1)
    return labels


def varies(labels: Tensor, dim: int) -> bool:
    """True when `labels` (...) differ along `dim`, i.e. when `dim` carries channels."""
    slim = narrowed(labels)
    return slim.shape[dim] > 1 and bool((slim != slim.narrow(dim, 0, 1)).any())


def spread(labels: Tensor, dim: int, out: Tensor) -> Tensor:
    """Labels (size,) laid along `dim` of the shape of `out` (...)."""
    shape = [1] * out.dim()
    shape[dim] = -1
    return labels.reshape(shape).expand(out.shape)


def anonymous(out: object) -> object:
    """Label 0 in the shape of `out`, a tensor or tensors in containers; None for anything else."""
    if isinstance(out, Tensor):
        return torch.zeros((), dtype=torch.long).expand(out.shape)
    if isinstance(out, list):
        return [anonymous(part) for part in out]
    if isinstance(out, tuple):  # named tuples too: their fields are not needed
        return tuple(anonymous(part) for part in out)
    return None


def flat(value: object) -> list[object]:
    """The leaves of nested tuples, lists and dicts, in order."""
    if isinstance(value, (tuple, list)):
        return [leaf for part in value for leaf in flat(part)]
    if isinstance(value, dict):
        return flat(list(value.values()))
    return [value]
