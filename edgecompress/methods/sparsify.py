"""Unstructured magnitude pruning in bounded memory: zero the smallest weights of a network, or of
each layer, in place.

torch.nn.utils.prune concatenates all weights, sorts them, and holds a mask for each. Here the
threshold is found by streaming: a strided sample gives a narrow bracket around it, one pass counts
the magnitudes below the bracket and collects the few inside, and the threshold is one of those.
Nothing larger than a chunk is held. If the sample was misleading, the bracket is widened and the
pass repeated.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from edgecompress.core import layers
from edgecompress.errors import EdgecompressError, UnknownNameError, UsageError

CHUNK = 1 << 18
"""Weights processed at a time (1 MB as float32: fits the cache)."""
SAMPLE = 1 << 18
"""Weights in the sample that brackets the threshold."""
LEVELS = tuple(level / 20 for level in range(1, 20))
"""5 % to 95 %."""


@dataclass(frozen=True)
class Zeroed:
    """The result of `zero_smallest_`: `zeros` of `size` weights are zero in each layer; `threshold`
    is the largest magnitude zeroed.
    """

    zeros: Mapping[str, int]
    size: Mapping[str, int]
    threshold: float | None

    def share(self, layer: str) -> float:
        """Share (0..1) of the weights of `layer` that are zero."""
        return self.zeros[layer] / self.size[layer]

    @property
    def total(self) -> float:
        """Share (0..1) of all weights that are zero."""
        return sum(self.zeros.values()) / sum(self.size.values())


def mixing_weights(model: nn.Module, names: Sequence[str] | None = None) -> dict[str, Tensor]:
    """Weights (O, I, ...) of Linear and convolution layers by layer name, each tensor once; only
    those in `names` if given.

    Raises `UnknownNameError` for a name that is no such layer.
    """
    weights: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, module in model.named_modules():
        if layers.is_mixing(module) and id(module.weight) not in seen:
            seen.add(id(module.weight))
            weights[name] = module.get_parameter("weight").detach()
    for name in names or ():
        if name not in weights:
            raise UnknownNameError("layer", name, weights)
    return weights if names is None else {name: weights[name] for name in names}


def zeros(weights: Mapping[str, Tensor]) -> dict[str, int]:
    """How many values of each tensor (...) are exactly zero."""
    return {name: weight.numel() - int(weight.count_nonzero()) for name, weight in weights.items()}


class Held(nn.Module):
    """`model` with its zero weights of convolutions and linear layers held at zero: in training
    they get no gradient, whatever the optimizer does to them.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.names = [*mixing_weights(model)]
        for number, weight in enumerate(mixing_weights(model).values()):
            self.register_buffer(f"held{number}", weight != 0)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (N, K) for `x` (N, ...)."""
        output: Tensor = functional_call(self.model, self._weights(), (x,))
        return output

    @torch.no_grad()
    def settle_(self) -> None:
        """Put the zeros back into the model's own weights."""
        for name, weight in self._weights().items():
            self.model.get_parameter(name).copy_(weight)

    def _weights(self) -> dict[str, Tensor]:
        return {
            f"{name}.weight": self.model.get_parameter(f"{name}.weight")
            * self.get_buffer(f"held{number}")
            for number, name in enumerate(self.names)
        }


@torch.no_grad()
def zero_smallest_(
    model: nn.Module,
    share: float,
    *,
    scope: str = "global",
    layer_names: Sequence[str] | None = None,
) -> Zeroed:
    """Zero the `share` (0..1) of the Linear and convolution weights of `model` that are smallest in
    magnitude, in place.

    `scope` is `global` (over all layers together) or `local` (the same share of each). Exactly
    round(share * count) weights are zeroed; of equal magnitudes those in earlier layers, then at
    lower positions, first. Weights that are already zero count among them. Biases and normalisation
    are unchanged. Memory on top of the model: a few chunks of `CHUNK` weights.

    Raises `UsageError` for a share outside 0..1 or an unknown scope, `UnknownNameError` for a layer
    that does not exist, `EdgecompressError` where a weight is not a number.
    """
    if not 0 <= share <= 1:
        raise UsageError(
            f"share {share:g} is outside 0..1: give the share of weights to zero, e.g. 0.6"
        )
    if scope not in ("global", "local"):
        raise UsageError(f"scope '{scope}' is not known: allowed are global, local")
    weights = mixing_weights(model, layer_names)
    sizes = {name: weight.numel() for name, weight in weights.items()}
    threshold = None
    if scope == "global":
        threshold = _zero_up_to_(list(weights.values()), round(share * sum(sizes.values())))
    else:
        for name, weight in weights.items():
            _zero_up_to_([weight], round(share * sizes[name]))
    return Zeroed(zeros(weights), sizes, threshold)


@torch.no_grad()
def zero_shares(model: nn.Module, share: float) -> dict[str, float]:
    """Share (0..1) of each layer's weights that `zero_smallest_(model, share)` would zero, with all
    ties; nothing is changed.
    """
    weights = mixing_weights(model)
    rank = round(share * sum(w.numel() for w in weights.values()))
    if rank == 0:
        return dict.fromkeys(weights, 0.0)
    threshold, _ = _threshold(list(weights.values()), rank)
    shares = {}
    for name, weight in weights.items():
        chunks = _chunks([weight])
        count = sum(int((chunk.abs() <= threshold.to(chunk)).sum()) for chunk in chunks)
        shares[name] = count / weight.numel()
    return shares


# The threshold, chunk by chunk


def _chunks(tensors: Sequence[Tensor]) -> Iterator[Tensor]:
    """Views of at most about `CHUNK` elements, in order; writing to one writes to its tensor."""
    for tensor in tensors:
        if tensor.is_contiguous():
            yield from tensor.view(-1).split(CHUNK)
        else:
            yield from tensor.split(max(1, CHUNK // max(1, tensor[0].numel())), 0)


class _Scratch:
    """Buffers of a chunk's size, reused for every chunk: allocating each time would fragment the
    heap.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    def like(self, chunk: Tensor, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """The buffer `name`, in the shape of `chunk` (...), with arbitrary content."""
        dtype = dtype or chunk.dtype
        key = (name, dtype, chunk.device)
        if key not in self._buffers or self._buffers[key].numel() < chunk.numel():
            size = max(CHUNK, chunk.numel())
            self._buffers[key] = torch.empty(size, dtype=dtype, device=chunk.device)
        return self._buffers[key][: chunk.numel()].view(chunk.shape)

    def magnitude(self, chunk: Tensor) -> Tensor:
        """|chunk| (...), valid until the next call."""
        return torch.abs(chunk, out=self.like(chunk, "magnitude"))


def _threshold(tensors: Sequence[Tensor], rank: int) -> tuple[Tensor, int]:
    """(t, n): the `rank`-th smallest magnitude (from 1), a scalar, and how many of those equal to
    it are among the `rank` smallest.
    """
    scratch = _Scratch()
    spread = 3.0
    while True:
        low, high = _bracket(tensors, rank, spread)
        below, inside = _split(tensors, low, high, scratch)
        if below < rank <= below + len(inside):
            threshold = inside.kthvalue(rank - below).values
            return threshold, rank - below - int((inside < threshold).sum())
        spread *= 100


def _bracket(tensors: Sequence[Tensor], rank: int, spread: float) -> tuple[Tensor, Tensor]:
    """Magnitudes, scalars, between which the `rank`-th smallest (from 1) probably lies, from an
    evenly strided sample. `spread` is the half width in standard deviations of its rank.
    """
    total = sum(t.numel() for t in tensors)
    step = max(1, total // SAMPLE)
    parts = [
        t.reshape(-1)[step // 2 if t.numel() > step else 0 :: step].abs().cpu() for t in tensors
    ]
    sample = torch.cat(parts).sort().values
    middle = rank / total * len(sample)
    margin = spread * len(sample) ** 0.5 + 8
    low = int(middle - margin)
    high = int(middle + margin)
    return (
        sample[low] if low > 0 else torch.zeros_like(sample[0]),
        sample[high] if high < len(sample) else torch.full_like(sample[0], torch.inf),
    )


def _split(
    tensors: Sequence[Tensor], low: Tensor, high: Tensor, scratch: _Scratch
) -> tuple[int, Tensor]:
    """How many magnitudes lie below `low`, and those from `low` to `high`, (n,)."""
    below = 0
    inside = []
    for chunk in _chunks(tensors):
        size = scratch.magnitude(chunk)
        low = low.to(size)
        high = high.to(size)
        if bool(size.sum().isnan()):
            raise EdgecompressError(
                "a weight is not a number, so none can be ranked: train again with a "
                "lower --learning-rate"
            )
        within = torch.ge(size, low, out=scratch.like(chunk, "at least", torch.bool))
        below += size.numel() - int(within.count_nonzero())
        within &= torch.le(size, high, out=scratch.like(chunk, "at most", torch.bool))
        inside.append(size[within].cpu())
    return below, torch.cat(inside)


def _zero_up_to_(tensors: Sequence[Tensor], rank: int) -> float | None:
    """Zero the `rank` smallest magnitudes over all `tensors`, in place; of equal ones those that
    come first. Returns the threshold, None for rank 0.
    """
    if rank == 0:
        return None
    threshold, ties = _threshold(tensors, rank)
    scratch = _Scratch()
    for chunk in _chunks(tensors):
        size = scratch.magnitude(chunk)
        limit = threshold.to(size)
        zeroed = torch.lt(size, limit, out=scratch.like(chunk, "zeroed", torch.bool))
        if ties:
            equal = torch.eq(size, limit, out=scratch.like(chunk, "equal", torch.bool))
            count = int(equal.count_nonzero())
            if count > ties:
                equal &= (equal.reshape(-1).cumsum(0) <= ties).reshape(equal.shape)
            zeroed |= equal
            ties -= min(ties, count)
        chunk.masked_fill_(zeroed, 0)
    return float(threshold)


# The sparsity profile


@dataclass(frozen=True)
class Profile:
    """How much global pruning removes from each layer at each level, and the accuracy there.

    `layers[name][i]` is the share of that layer's weights that is zero at `levels[i]`,
    `accuracy[i]` the accuracy there, all in 0..1. `holds_to` is the highest level up to which every
    accuracy is within `tolerance` of `unpruned`; 0 if not even the first is.
    """

    levels: tuple[float, ...]
    layers: Mapping[str, tuple[float, ...]]
    accuracy: tuple[float, ...]
    unpruned: float
    tolerance: float

    @property
    def holds_to(self) -> float:
        """See the class."""
        held = 0.0
        for level, accuracy in zip(self.levels, self.accuracy, strict=True):
            if accuracy < self.unpruned - self.tolerance - 1e-9:
                break
            held = level
        return held


def profile(
    model: nn.Module,
    accuracy_of: Callable[[nn.Module], float],
    levels: Sequence[float] = LEVELS,
    tolerance: float = 0.01,
) -> Profile:
    """The sparsity profile of `model`, which is not changed: one copy is zeroed further from level
    to level.

    Zeroing is nested: what is zeroed at one level is among the smallest at the next, so this equals
    pruning the original at each.
    """
    work = copy.deepcopy(model)
    unpruned = accuracy_of(work)
    accuracy = []
    shares: dict[str, list[float]] = {name: [] for name in mixing_weights(work)}
    for level in sorted(levels):
        zeroed = zero_smallest_(work, level)
        accuracy.append(accuracy_of(work))
        for name, values in shares.items():
            values.append(zeroed.share(name))
    return Profile(
        levels=tuple(sorted(levels)),
        layers={name: tuple(values) for name, values in shares.items()},
        accuracy=tuple(accuracy),
        unpruned=unpruned,
        tolerance=tolerance,
    )
