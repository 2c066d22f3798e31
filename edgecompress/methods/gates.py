"""L0 gates on channel groups: which channels of a (wide) network are needed, learned with its
weights.

Each channel has a hard-concrete gate (Louizos et al. 2018) with location `log_alpha`; every
consumer reads the channel times its gate:

    u ~ U(0, 1);   s = sigmoid((log u - log(1 - u) + log_alpha) / beta)
    g = clip(s (zeta - gamma) + gamma, 0, 1)
    P(g > 0) = sigmoid(log_alpha - beta log(-gamma / zeta))

with gamma = -0.1, zeta = 1.1, beta = 2/3. One draw a group and forward pass is shared by all its
consumers, so a residual stream has one gate. With one draw a batch the consumer's weight or its
input is scaled, whichever is smaller; with one a sample, its input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from edgecompress.core import ChannelGraph, consumers, layers
from edgecompress.core.shrink import Keep, rebuilt, shrink
from edgecompress.methods.scores import Scores

GAMMA, ZETA, BETA = -0.1, 1.1, 2 / 3
LOCATION, SPREAD = 1.0, 0.01
"""Mean and standard deviation of `log_alpha` at the start: nearly all gates open."""
CLAMP = 1e-6


def open_probability(log_alpha: Tensor) -> Tensor:
    """P(g > 0), elementwise."""
    return torch.sigmoid(log_alpha - BETA * math.log(-GAMMA / ZETA))


def hard_concrete(log_alpha: Tensor, u: Tensor) -> Tensor:
    """The gate for uniform `u` (broadcastable to `log_alpha`), in 0..1."""
    u = u.clamp(CLAMP, 1 - CLAMP)
    s = torch.sigmoid((u.log() - (1 - u).log() + log_alpha) / BETA)
    return (s * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def settled(log_alpha: Tensor) -> Tensor:
    """The gate without noise, for evaluation and at the cut: clip(sigmoid(log_alpha) (zeta - gamma)
    + gamma, 0, 1).
    """
    return (torch.sigmoid(log_alpha) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


@dataclass(frozen=True)
class GroupStatistics:
    """Gates of one group: mean P(open), share that is more likely open than not, mean entropy in
    bits, and how the cut agrees.

    `agreement` is the share of channels that the cut keeps and that are likely open, or that it
    drops and that are likely closed.
    """

    group: str
    size: int
    kept: int
    mean_open: float
    likely_open: float
    entropy: float
    agreement: float


class Gated(nn.Module):
    """`model` with a gate on every channel of the groups of `graph`, its trace. In training mode
    gates are drawn, in eval mode settled.

    `per` is `batch` or `sample`: how often a gate is drawn. `noise` in 0..1 narrows the draws
    around the middle: u = 1/2 + noise (U - 1/2).
    """

    def __init__(
        self,
        model: nn.Module,
        graph: ChannelGraph,
        *,
        per: str = "batch",
        noise: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.model, self.graph, self.per, self.noise = model, graph, per, noise
        generator = torch.Generator().manual_seed(seed)
        total = sum(group.size for group in graph.groups)
        start = LOCATION + SPREAD * torch.randn(total, generator=generator)
        reference = next(model.parameters())
        self.log_alpha = nn.Parameter(start.to(reference))
        self.offsets: dict[str, int] = {}
        place = 0
        for group in graph.groups:
            self.offsets[group.name] = place
            place += group.size
        self.sources = self._sources(total)
        self._read: dict[str, int] = {}
        """Numbers that each consumer reads of a sample, once it has."""

    def _sources(self, total: int) -> dict[str, Tensor]:
        """For each consumer: which gate each of its input positions (in,) reads; `total` stands for
        none.
        """
        found: dict[str, Tensor] = {}
        for group in self.graph.groups:
            for member in consumers(self.model, group):
                layer = self.model.get_submodule(member.layer)
                known = found.setdefault(
                    member.layer, torch.full((layers.axis_size(layer, "in"),), total)
                )
                known[member.index] = self.offsets[group.name] + torch.arange(group.size)[
                    :, None
                ].expand_as(member.index)
        return {name: places.to(self.log_alpha.device) for name, places in found.items()}

    def of_group(self, name: str) -> Tensor:
        """`log_alpha` (C,) of the group called `name`."""
        start = self.offsets[name]
        return self.log_alpha[start : start + self.graph.group(name).size]

    def forward(self, x: Tensor) -> Tensor:
        """Logits of `x`, each consumer reading its input times the gates."""
        rows = len(x) if self.training and self.per == "sample" else 1
        gates = (
            self._draw((rows, len(self.log_alpha)))
            if self.training
            else settled(self.log_alpha)[None]
        )
        padded = torch.cat([gates, gates.new_ones(rows, 1)], 1)  # (rows, gates + 1)
        by_input = {
            name for name in self.sources if rows > 1 or self._input_is_smaller(name, len(x))
        }
        scaled = {
            f"{name}.weight": layers.scale_inputs(
                self.model.get_submodule(name), padded[0, source.to(padded.device)]
            )
            for name, source in self.sources.items()
            if name not in by_input
        }
        with self._scaled_inputs(padded, by_input):
            output: Tensor = functional_call(self.model, scaled, (x,))
        return output

    def _input_is_smaller(self, name: str, samples: int) -> bool:
        """Does the consumer read fewer numbers of so many samples than it has weights? No, where it
        has not run yet.
        """
        weight = self.model.get_submodule(name).weight  # under vmap a tensor, no Parameter
        return (
            isinstance(weight, Tensor)
            and name in self._read
            and samples * self._read[name] < weight.numel()
        )

    def _draw(self, shape: tuple[int, ...]) -> Tensor:
        u = 0.5 + self.noise * (
            torch.rand(shape, device=self.log_alpha.device, dtype=self.log_alpha.dtype) - 0.5
        )
        return hard_concrete(self.log_alpha, u)

    @contextmanager
    def _scaled_inputs(self, padded: Tensor, names: Collection[str]) -> Iterator[None]:
        """While it lasts, the consumers `names` multiply what they read by their gates (rows, gates
        + 1); of all it is noted how much.
        """

        def scaling(name: str) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...] | None]:
            def hook(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
                value, dim = inputs[0], 1 if layers.is_conv(layer) else inputs[0].dim() - 1
                self._read[name] = value.numel() // max(1, len(value))
                if name not in names:
                    return None
                factor, shape = (
                    padded[:, self.sources[name].to(padded.device)],
                    [1] * value.dim(),
                )  # (rows, in)
                shape[0], shape[dim] = factor.shape
                return (value * factor.reshape(shape), *inputs[1:])

            return hook

        handles = [
            self.model.get_submodule(name).register_forward_pre_hook(scaling(name))
            for name in self.sources
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def distance(self, share: float) -> Tensor:
        """The L0 loss: mean over groups of (share - mean P(open))^2, a scalar."""
        means = torch.stack(
            [open_probability(self.of_group(group.name)).mean() for group in self.graph.groups]
        )
        return (share - means).square().mean()

    @torch.no_grad()
    def folded(self) -> nn.Module:
        """The network without gates in which every consumer's weight holds the settled gates: it
        computes what `self` does in eval mode.
        """
        padded = torch.cat([settled(self.log_alpha), self.log_alpha.new_ones(1)])
        changed = {}
        for name, source in self.sources.items():
            layer = self.model.get_submodule(name)
            changed[name] = layers.Cut(
                {"weight": layers.scale_inputs(layer, padded[source]).detach().clone()}, {}
            )
        return rebuilt(self.model, changed)

    @torch.no_grad()
    def scores(self) -> Scores:
        """P(open) of every channel (C,), by group."""
        return {
            group: open_probability(self.of_group(group.name)).double().cpu()
            for group in self.graph.groups
        }

    def cut(self, keep: Keep) -> nn.Module:
        """The smaller network: gates folded in, then shrunk to `keep`."""
        return shrink(self.folded(), keep)


def statistics(openness: Scores, keep: Keep) -> list[GroupStatistics]:
    """What the probabilities of being open (C,) say of each group, and how `keep` agrees with
    them.
    """
    rows = []
    for group, values in openness.items():
        likely, kept = values > 0.5, keep.get(group, torch.ones(group.size, dtype=torch.bool))
        safe = values.clamp(1e-9, 1 - 1e-9)
        entropy = -(safe * safe.log2() + (1 - safe) * (1 - safe).log2())
        rows.append(
            GroupStatistics(
                group.name,
                group.size,
                int(kept.sum()),
                float(values.mean()),
                float(likely.double().mean()),
                float(entropy.mean()),
                float((likely == kept).double().mean()),
            )
        )
    return rows


def most_open(scores: Scores, share: float) -> dict[Any, Tensor]:
    """For each group a mask of the round(share * C) most probably open channels, at least one; ties
    go to the first.
    """
    keep = {}
    for group, values in scores.items():
        wanted = max(1, round(share * group.size))
        mask = torch.zeros(group.size, dtype=torch.bool)
        mask[values.argsort(descending=True, stable=True)[:wanted]] = True
        keep[group] = mask
    return keep


LAMBDAS = ("source", "linear", "cosine", "constant")
SOURCE_STEP = 0.05


def lambdas(schedule: str, epochs: int, start: float = 0.01) -> list[float]:
    """Weight of the L0 loss in every epoch.

    `source`: lambda + 0.05 sqrt(lambda) from epoch to epoch (Pašen 2022); the others reach the same
    last value along a line or half a cosine, or have it throughout. `start` > 0, since zero is a
    fixed point of the source's.
    """
    if start <= 0:
        raise ValueError(f"lambda starts at {start}: it must be above 0")
    values = [start]
    for _ in range(epochs - 1):
        values.append(values[-1] + SOURCE_STEP * math.sqrt(values[-1]))
    last, steps = values[-1], max(1, epochs - 1)
    if schedule == "linear":
        return [start + (last - start) * e / steps for e in range(epochs)]
    if schedule == "cosine":
        return [
            start + (last - start) * (1 - math.cos(math.pi * e / steps)) / 2 for e in range(epochs)
        ]
    return [last] * epochs if schedule == "constant" else values
