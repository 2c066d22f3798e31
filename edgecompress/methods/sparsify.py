"""Unstructured magnitude pruning in bounded memory: zero the smallest weights of a network, or of
each layer, in place.

torch.nn.utils.prune concatenates all weights, sorts them, and keeps a mask beside each. Here the
threshold is found by streaming: a strided sample gives a narrow bracket around it, one pass counts
what lies below the bracket and collects the few weights inside, and the threshold is read off
those. Nothing larger than a chunk is held. Where the sample misled, the bracket is widened and the
pass repeated.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgecompress.core import layers
from edgecompress.errors import EdgecompressError, UnknownNameError, UsageError

CHUNK = 1 << 18
"""Weights looked at at once (1 MB as float32: stays in the cache)."""
SAMPLE = 1 << 18
"""Weights in the sample that brackets the threshold."""


@dataclass(frozen=True)
class Zeroed:
    """What `zero_smallest_` left: `zeros` of `size` weights are zero in each layer; `threshold` is
    the largest magnitude that went.
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
    """Weights of Linear and convolution layers by layer name, each tensor once; only those in
    `names` when given.

    Raises `UnknownNameError` for a name that is no such layer.
    """
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, module in model.named_modules():
        if layers.is_mixing(module) and id(module.weight) not in seen:
            seen.add(id(module.weight))
            found[name] = module.get_parameter("weight").detach()
    for name in names or ():
        if name not in found:
            raise UnknownNameError("layer", name, found)
    return found if names is None else {name: found[name] for name in names}


def _chunks(tensors: Sequence[Tensor]) -> Iterator[Tensor]:
    """Views of at most about `CHUNK` elements, in order; writing to one writes to its tensor."""
    for tensor in tensors:
        if tensor.is_contiguous():
            yield from tensor.view(-1).split(CHUNK)
        else:
            yield from tensor.split(max(1, CHUNK // max(1, tensor[0].numel())), 0)


class _Scratch:
    """Buffers of a chunk's size, used again for every chunk: fresh ones each time would leave holes
    all over the heap.
    """

    def __init__(self) -> None:
        self._held: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    def like(self, chunk: Tensor, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """The buffer called `name`, in the shape of `chunk`; its content is left over."""
        key = (name, dtype or chunk.dtype, chunk.device)
        if key not in self._held or self._held[key].numel() < chunk.numel():
            self._held[key] = torch.empty(
                max(CHUNK, chunk.numel()), dtype=key[1], device=chunk.device
            )
        return self._held[key][: chunk.numel()].view(chunk.shape)

    def magnitude(self, chunk: Tensor) -> Tensor:
        """|chunk|, valid until the next call."""
        return torch.abs(chunk, out=self.like(chunk, "magnitude"))


def _bracket(
    tensors: Sequence[Tensor], rank: int, total: int, spread: float
) -> tuple[Tensor, Tensor]:
    """Magnitudes between which the `rank`-th smallest (from 1) of `total` probably lies, from an
    evenly strided sample.
    """
    step = max(1, total // SAMPLE)
    parts = [
        t.reshape(-1)[step // 2 if t.numel() > step else 0 :: step].abs().cpu() for t in tensors
    ]
    sample = torch.cat(parts).sort().values
    middle, margin = rank / total * len(sample), spread * len(sample) ** 0.5 + 8
    low, high = int(middle - margin), int(middle + margin)
    zero, infinity = torch.zeros_like(sample[0]), torch.full_like(sample[0], torch.inf)
    return sample[low] if low > 0 else zero, sample[high] if high < len(sample) else infinity


def _threshold(tensors: Sequence[Tensor], rank: int) -> tuple[Tensor, int]:
    """(t, n): the `rank`-th smallest magnitude, and how many of those equal to it are among the
    `rank` smallest.
    """
    total = sum(t.numel() for t in tensors)
    spread, scratch = 3.0, _Scratch()
    while True:
        low, high = _bracket(tensors, rank, total, spread)
        below, inside = 0, []
        for chunk in _chunks(tensors):
            size = scratch.magnitude(chunk)
            low, high = low.to(size), high.to(size)
            if bool(size.sum().isnan()):
                raise EdgecompressError(
                    "a weight is not a number, so none can be ranked: train again with a "
                    "lower --learning-rate"
                )
            over = torch.ge(size, low, out=scratch.like(chunk, "over", torch.bool))
            below += size.numel() - int(over.count_nonzero())
            over &= torch.le(size, high, out=scratch.like(chunk, "under", torch.bool))
            inside.append(size[over].cpu())
        found = torch.cat(inside)
        if below < rank <= below + len(found):
            value = found.kthvalue(rank - below).values
            return value, rank - below - int((found < value).sum())
        spread *= 100


def _zero_up_to_(tensors: Mapping[str, Tensor], rank: int) -> float | None:
    """Zero the `rank` smallest magnitudes over all `tensors`, in place; of equal ones those that
    come first. Returns the threshold.
    """
    if rank == 0:
        return None
    value, ties = _threshold(list(tensors.values()), rank)
    scratch = _Scratch()
    for chunk in _chunks(list(tensors.values())):
        size = scratch.magnitude(chunk)
        limit = value.to(size)
        gone = torch.lt(size, limit, out=scratch.like(chunk, "gone", torch.bool))
        if ties:
            equal = torch.eq(size, limit, out=scratch.like(chunk, "equal", torch.bool))
            count = int(equal.count_nonzero())
            if count > ties:
                equal &= (equal.reshape(-1).cumsum(0) <= ties).reshape(equal.shape)
            gone |= equal
            ties -= min(ties, count)
        chunk.masked_fill_(gone, 0)
    return float(value)


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
    round(share * count) weights go; of equal magnitudes those in earlier layers, then at lower
    positions, go first. Weights that are zero already count among them. Biases and normalisation
    are left alone. Memory on top of the model: a few chunks of `CHUNK` weights.

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
        threshold = _zero_up_to_(weights, round(share * sum(sizes.values())))
    else:
        for name, weight in weights.items():
            _zero_up_to_({name: weight}, round(share * sizes[name]))
    return Zeroed(zeros(weights), sizes, threshold)


@torch.no_grad()
def zero_shares(model: nn.Module, share: float) -> dict[str, float]:
    """Share (0..1) of each layer's weights that `zero_smallest_(model, share)` would zero, ties all
    counted; nothing is changed.
    """
    weights = mixing_weights(model)
    rank = round(share * sum(w.numel() for w in weights.values()))
    if rank == 0:
        return dict.fromkeys(weights, 0.0)
    value, _ = _threshold(list(weights.values()), rank)
    found = {}
    for name, weight in weights.items():
        found[name] = (
            sum(int((chunk.abs() <= value.to(chunk)).sum()) for chunk in _chunks([weight]))
            / weight.numel()
        )
    return found


@dataclass(frozen=True)
class Profile:
    """What global pruning takes from each layer at each level, and the accuracy there.

    `layers[name][i]` is the share of that layer's weights that is zero at `levels[i]`,
    `accuracy[i]` the accuracy there, all in 0..1. `holds_to` is the highest level up to which every
    accuracy is within `tolerance` of `unpruned`; 0 when not even the first is.
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


LEVELS = tuple(level / 20 for level in range(1, 20))
"""5 % to 95 %."""


def profile(
    model: nn.Module,
    accuracy_of: Callable[[nn.Module], float],
    levels: Sequence[float] = LEVELS,
    tolerance: float = 0.01,
) -> Profile:
    """The sparsity profile of `model`, which is not changed: one copy is zeroed further from level
    to level.

    Zeroing is nested: what goes at one level is among the smallest at the next, so this equals
    pruning afresh at each.
    """
    work = copy.deepcopy(model)
    unpruned, accuracy = accuracy_of(work), []
    names = list(mixing_weights(work))
    taken: dict[str, list[float]] = {name: [] for name in names}
    for level in sorted(levels):
        zeroed = zero_smallest_(work, level)
        accuracy.append(accuracy_of(work))
        for name in names:
            taken[name].append(zeroed.share(name))
    return Profile(
        tuple(sorted(levels)),
        {n: tuple(s) for n, s in taken.items()},
        tuple(accuracy),
        unpruned,
        tolerance,
    )


def zeros(weights: Mapping[str, Tensor]) -> dict[str, int]:
    """How many values of each tensor are exactly zero."""
    return {name: weight.numel() - int(weight.count_nonzero()) for name, weight in weights.items()}
