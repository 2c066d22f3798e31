"""The proof that a cut keeps the function: law 3, computed on the network itself.

    trace(model, example) -> ChannelGraph

A trace of labels reads operations; a number that a network's own code computes from a width, or
takes from an attribute, it cannot see. So the network is cut at random and run: where the small one
computes something else than the large one with zeros in the place of what was dropped, or does not
run, the group whose cut makes the difference is found by bisection and frozen.
"""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from edgecompress.core.graph import ChannelGraph, ChannelGroup
from edgecompress.core.graph import trace as label_trace
from edgecompress.core.shrink import Keep, masked, shrink
from edgecompress.core.symbolic import meta_copy
from edgecompress.errors import EdgecompressError, blamed

Inputs = tuple[Tensor, ...]
"""What a network is called with."""
_SOUND: set[object] = set()
"""Structures of networks of which every group could be cut."""
BATCHES = (2, 3)
"""Batch sizes of the random inputs."""
LARGE = 30_000_000
"""Parameters above which the proof is in float32 alone, to save memory."""
ROUNDING = 1e-5
"""A difference in float32, as a share of the largest output, up to which there is none."""
TOLERANCE = {torch.float64: 1e-8, torch.float32: 2e-4}
"""Allowed difference, as a share of the largest output, where the numbers must decide: float64, or
float32 where the network runs in no other.
"""
SMALLEST = 1e-3
"""The largest output counts as at least this."""
GAIN = 2**0.5
"""Keeps the size of activations through ReLUs (He et al. 2015)."""
OTHER = "its cut changes what the network computes: a number in its code depends on the width"


def trace(model: nn.Module, example: Tensor, *more: Tensor) -> ChannelGraph:
    """The channel groups of `model` for inputs like `example` (N, C, ...) and `more`, of which only
    shape and dtype are used: those whose cut keeps its function.

    Each network is proved, by fewer cuts where one of the same modules was sound before: its code
    may differ where its modules do not. Raises `UsageError` when it cannot run on such an input.
    """
    graph = label_trace(model, example, *more)
    modules = tuple((name, type(module)) for name, module in model.named_modules())
    sizes = tuple(tuple(one.shape[1:]) for one in (example, *more))
    structure = (modules, sizes, tuple(group.name for group in graph.groups))
    reasons = _unsound(model, graph, 0, known=structure in _SOUND)
    if not reasons:
        _SOUND.add(structure)
    return _frozen(graph, reasons)


def sound(model: nn.Module, graph: ChannelGraph, seed: int = 0) -> ChannelGraph:
    """`graph` with those groups frozen whose cut changes the function of `model`, or keeps it from
    running. Weights and inputs are random: only the structure of `model` is used.
    """
    return _frozen(graph, _unsound(model, graph, seed))


def check(model: nn.Module, keep: Keep, example: Tensor, seed: int = 0) -> None:
    """The proof for one cut. `example` (N, C, ...) is an input. Raises `EdgecompressError` that
    names the groups whose cut changes the function of `model`.
    """
    groups = [group for group, mask in keep.items() if not mask.all()]
    probe = _Probe(model, (example,), seed)
    if groups and probe.fault(groups, keep) is not None:
        reasons = probe.blame(groups, keep)
        raise EdgecompressError(
            f"the channels of {', '.join(reasons)} cannot be cut like this: "
            f"{next(iter(reasons.values()))}; prune the other layers only (--layers)"
        )


def _unsound(
    model: nn.Module, graph: ChannelGraph, seed: int, *, known: bool = False
) -> dict[str, str]:
    """The groups that cannot be cut, and why: none of several cuts may change the function; of a
    `known` structure one.
    """
    if not graph.groups:
        return {}
    first = torch.empty(graph.input_shape, device="meta")
    probe = _Probe(model, (first, *graph.more_inputs), seed)
    if known and probe.fault(graph.groups, probe.in_turn(graph.groups), BATCHES[:1]) is None:
        return {}
    reasons: dict[str, str] = {}
    cuts = (probe.in_turn(graph.groups), probe.at_random(graph.groups))
    for keep, batch in zip(cuts, BATCHES, strict=True):
        while groups := [group for group in graph.groups if group.name not in reasons]:
            if probe.fault(groups, keep, [batch]) is None:
                break
            reasons.update(probe.blame(groups, keep, [batch]))
    return reasons


def _frozen(graph: ChannelGraph, reasons: Mapping[str, str]) -> ChannelGraph:
    """`graph` with the groups in `reasons` frozen."""
    if not reasons:
        return graph
    frozen = [
        replace(group, frozen=reasons[group.name])
        for group in graph.groups
        if group.name in reasons
    ]
    kept = tuple(group for group in graph.groups if group.name not in reasons)
    return replace(graph, groups=kept, frozen=(*graph.frozen, *frozen))


class _Probe:
    """A copy of a network with random weights, which is cut in several ways.

    It computes in float32, which is several times as fast. What differs by more than rounding is
    computed again in float64.
    """

    def __init__(self, model: nn.Module, examples: Sequence[Tensor], seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._large = sum(p.numel() for p in model.parameters()) > LARGE
        self._network = self._random_copy(model)
        self._inputs = [
            tuple(self._random_input(example, batch) for example in examples) for batch in BATCHES
        ]
        self._failure = self._run_uncut()

    def _run_uncut(self) -> str | None:
        """Why it does not run even uncut, if so."""
        try:
            with torch.no_grad():
                self._network(*(x[:1] for x in self._inputs[0]))
        except Exception as error:  # whatever the network's own code raises
            return f"no cut can be proved, it does not run on random weights: {blamed(error)}"
        return None

    def in_turn(self, groups: Sequence[ChannelGroup]) -> Keep:
        """Between a third and two thirds of each group, so that groups that follow one another keep
        different numbers.
        """
        keep, seen = {}, Counter[int]()
        for group in groups:
            low, high = max(1, group.size // 3), max(2, -(-2 * group.size // 3))
            keep[group] = self._mask(group.size, low + seen[group.size] % (high - low + 1))
            seen[group.size] += 1
        return keep

    def at_random(self, groups: Sequence[ChannelGroup]) -> Keep:
        """Any number of channels of each group."""
        return {
            group: self._mask(
                group.size,
                int(torch.randint(1, group.size + 1, (), generator=self._generator)),
            )
            for group in groups
        }

    def fault(
        self, groups: Sequence[ChannelGroup], kept: Keep, batches: Sequence[int] = BATCHES
    ) -> str | None:
        """Why `groups` cannot be cut together; None where they can, on random inputs of the sizes
        `batches`.
        """
        if self._failure is not None:
            return self._failure
        keep = {group: kept[group] for group in groups}
        try:
            small, large = shrink(self._network, keep), masked(self._network, keep)
            inputs = [x for x in self._inputs if len(x[0]) in batches]
            same = all(self._same(large, small, x) for x in inputs)
        except Exception as error:  # whatever the network's own code raises
            return f"the network does not run when it is cut: {blamed(error)}"
        return None if same else OTHER

    def blame(
        self, groups: Sequence[ChannelGroup], kept: Keep, batches: Sequence[int] = BATCHES
    ) -> dict[str, str]:
        """The groups that cannot be cut, with the reason: one is found by bisection, those of its
        kind (`blocks.3.attn.qkv` after `blocks.2.attn.qkv`) are suspected, and so on. Suspects that
        can be cut are not named.
        """
        reasons: dict[str, str] = {}
        suspects: list[tuple[str, list[ChannelGroup]]] = []
        rest = list(groups)
        while rest and (reason := self.fault(rest, kept, batches)) is not None:
            if self._failure is not None:
                return {group.name: reason for group in groups}
            guilty, reason = self._guilty(rest, kept, batches)
            reasons.update({group.name: reason for group in guilty})
            kinds = {_kind(group) for group in guilty}
            rest = [group for group in rest if group not in guilty]
            alike = [group for group in rest if _kind(group) in kinds]
            rest = [group for group in rest if _kind(group) not in kinds]
            suspects += [(reason, part) for part in _quarters(alike)]
        for reason, part in suspects:
            if self.fault([*rest, *part], kept, batches) is None:
                rest += part
            else:
                reasons.update({group.name: reason for group in part})
        return reasons

    def _guilty(
        self, groups: list[ChannelGroup], kept: Keep, batches: Sequence[int]
    ) -> tuple[list[ChannelGroup], str]:
        """One of `groups`, which cannot be cut together, that cannot be cut; several where only
        together they make a difference.
        """
        half = len(groups) // 2
        for part in (groups[:half], groups[half:]) if half else ():
            if self.fault(part, kept, batches) is not None:
                return self._guilty(part, kept, batches)
        return groups, self.fault(groups, kept, batches) or OTHER

    def _same(self, large: nn.Module, small: nn.Module, x: Inputs) -> bool:
        """Do both compute the same for `x`?"""
        if _alike(large, small, x, ROUNDING):
            return True
        if not self._large:
            try:
                return _alike(
                    copy.deepcopy(large).double(),
                    copy.deepcopy(small).double(),
                    tuple(one.double() if one.is_floating_point() else one for one in x),
                    TOLERANCE[torch.float64],
                )
            except (RuntimeError, TypeError):
                pass  # constants of its own may be of one type of numbers only
        return _alike(large, small, x, TOLERANCE[torch.float32])

    def _random_input(self, like: Tensor, batch: int) -> Tensor:
        """`batch` random samples; integers, which may be indices, are 0 or 1."""
        shape = (batch, *like.shape[1:])
        if like.is_floating_point():
            return torch.randn(shape, generator=self._generator)
        return torch.randint(0, 2, shape, generator=self._generator).to(like.dtype)

    def _mask(self, size: int, count: int) -> Tensor:
        """`count` channels of `size`, any ones."""
        kept = torch.zeros(size, dtype=torch.bool)
        kept[torch.randperm(size, generator=self._generator)[: min(count, size)]] = True
        return kept

    def _random_copy(self, model: nn.Module) -> nn.Module:
        """A copy in eval mode with random weights, of a size that keeps activations in range."""
        copied = meta_copy(model, integers=True)
        made: dict[int, Tensor] = {}
        for module in copied.modules():
            for store in (module._parameters, module._buffers):
                for name, tensor in store.items():
                    if tensor is not None and (tensor.is_meta or tensor.is_floating_point()):
                        if id(tensor) not in made:  # one tensor under two names stays one
                            new = self._random(name, tensor)
                            is_parameter = isinstance(tensor, nn.Parameter)
                            made[id(tensor)] = nn.Parameter(new, False) if is_parameter else new
                        store[name] = made[id(tensor)]  # type: ignore[assignment]
            for name, value in vars(module).items():
                if isinstance(value, Tensor) and value.is_meta:
                    vars(module)[name] = made.setdefault(id(value), self._random(name, value))
        return copied

    def _random(self, name: str, like: Tensor) -> Tensor:
        if not like.is_floating_point():
            return torch.zeros(like.shape, dtype=like.dtype)
        if name == "running_var":
            return 0.5 + torch.rand(like.shape, generator=self._generator)
        fan_in = max(1, like[0].numel()) if like.dim() > 1 else 4
        values: Tensor = torch.randn(like.shape, generator=self._generator)
        values *= GAIN * fan_in**-0.5
        return values


def _kind(group: ChannelGroup) -> str:
    """The name of a group without the numbers of its blocks."""
    return re.sub(r"\d+", "", group.name)


def _quarters(groups: list[ChannelGroup]) -> list[list[ChannelGroup]]:
    size = max(1, -(-len(groups) // 4))
    return [groups[start : start + size] for start in range(0, len(groups), size)]


@torch.no_grad()
def _alike(large: nn.Module, small: nn.Module, x: Inputs, tolerance: float) -> bool:
    """Are the outputs of both equal, up to a share `tolerance` of the largest value?"""
    one, two = (list(_tensors(network(*x))) for network in (large, small))
    if not one:
        raise TypeError("its outputs hold no tensor that can be compared")
    if [leaf.shape for leaf in one] != [leaf.shape for leaf in two]:
        return False
    return all(_close(a, b, tolerance) for a, b in zip(one, two, strict=True))


def _tensors(value: object) -> Iterator[Tensor]:
    """Every tensor in outputs: in containers, and in the fields of objects."""
    for leaf in pytree.tree_leaves(value):
        if isinstance(leaf, Tensor):
            yield leaf
        elif hasattr(leaf, "__dict__"):
            yield from _tensors(vars(leaf))


def _close(one: Tensor, two: Tensor, tolerance: float) -> bool:
    """Equal up to `tolerance`; what is not finite must be so in both."""
    finite = one.isfinite()
    if not torch.equal(finite, two.isfinite()):
        return False
    one, two = one[finite].double(), two[finite].double()
    if not one.numel():
        return True
    scale = max(SMALLEST, float(one.abs().max()))
    return float((one - two).abs().max()) <= tolerance * scale
