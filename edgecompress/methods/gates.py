"""L0 gates on channel groups: which channels of a (wide) network are needed, learned together with
its weights.

Each channel has a hard-concrete gate (Louizos et al. 2018) with location `log_alpha`; every
consumer reads the channel times its gate:

    u ~ U(0, 1);   s = sigmoid((log u - log(1 - u) + log_alpha) / beta)
    g = clip(s (zeta - gamma) + gamma, 0, 1)
    P(g > 0) = sigmoid(log_alpha - beta log(-gamma / zeta))

with gamma = -0.1, zeta = 1.1, beta = 2/3. All consumers of a group share one draw per forward pass,
so a residual stream has one gate per channel. If gates are drawn per batch, the consumer's weight
or its input is scaled, whichever is smaller; if per sample, its input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from edgecompress.core import ChannelGraph, ChannelGroup, consumers, layers
from edgecompress.core.shrink import Keep, rebuilt, shrink
from edgecompress.methods.scores import Scores
from edgecompress.train.modes import Inputs, hooked

GAMMA, ZETA, BETA = -0.1, 1.1, 2 / 3
LOCATION, SPREAD = 1.0, 0.01
"""Initial mean and standard deviation of `log_alpha`: nearly all gates are open."""
CLAMP = 1e-6


def open_probability(log_alpha: Tensor) -> Tensor:
    """P(g > 0), in 0..1, of `log_alpha` (...), elementwise (Louizos et al. 2018, equation 12)."""
    return torch.sigmoid(log_alpha - BETA * math.log(-GAMMA / ZETA))


def hard_concrete(log_alpha: Tensor, u: Tensor) -> Tensor:
    """The gate, in 0..1, of `log_alpha` (C,) for uniform `u` in 0..1, (C,) or (rows, C), in the
    shape of `u` (Louizos et al. 2018, equations 10 and 11).
    """
    u = u.clamp(CLAMP, 1 - CLAMP)
    s = torch.sigmoid((u.log() - (1 - u).log() + log_alpha) / BETA)
    return (s * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def settled(log_alpha: Tensor) -> Tensor:
    """The deterministic gate of `log_alpha` (...), for evaluation and at the cut, elementwise:
    clip(sigmoid(log_alpha) (zeta - gamma) + gamma, 0, 1) (Louizos et al. 2018, equation 13).
    """
    return (torch.sigmoid(log_alpha) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


class Gated(nn.Module):
    """`model` with a gate on every channel of the groups of `graph`, its trace. Gates are drawn in
    training mode and deterministic in eval mode.

    `per` is `batch` or `sample`: how often a gate is drawn. `noise` in 0..1 narrows the draws
    around the middle: u = 1/2 + noise (U - 1/2).

    `log_alpha` (G,) holds the gates of all groups, those of a group from its place in `offsets` on.
    `sources` has for each consumer the gate that each of its inputs (in,) reads, G for none.
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
        self.model = model
        self.graph = graph
        self.per = per
        self.noise = noise

        self.offsets: dict[str, int] = {}
        total = 0
        for group in graph.groups:
            self.offsets[group.name] = total
            total += group.size

        generator = torch.Generator().manual_seed(seed)
        start = LOCATION + SPREAD * torch.randn(total, generator=generator)
        self.log_alpha = nn.Parameter(start.to(next(model.parameters())))
        self.sources = self._sources(total)
        self._read: dict[str, int] = {}
        """Numbers per sample that each consumer has been seen to read."""

    def _sources(self, total: int) -> dict[str, Tensor]:
        """The gate of each input (in,) of each consumer; `total` stands for none."""
        sources: dict[str, Tensor] = {}
        for group in self.graph.groups:
            start = self.offsets[group.name]
            gates = torch.arange(start, start + group.size)[:, None]  # (C, 1)
            for member in consumers(self.model, group):
                size = layers.axis_size(self.model.get_submodule(member.layer), "in")
                source = sources.setdefault(member.layer, torch.full((size,), total))
                source[member.index] = gates.expand_as(member.index)
        return sources

    def _read_by(self, name: str, padded: Tensor) -> Tensor:
        """The gate of each input (..., in) of the consumer `name`, from `padded` (..., G + 1)."""
        self.sources[name] = self.sources[name].to(padded.device)
        return padded[..., self.sources[name]]

    def of_group(self, name: str) -> Tensor:
        """`log_alpha` (C,) of the group `name`."""
        start = self.offsets[name]
        return self.log_alpha[start : start + self.graph.group(name).size]

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of `x` (N, ...), each consumer reading its input times the gates."""
        gates = self._gates(len(x))  # (rows, G)
        rows = len(gates)
        padded = torch.cat([gates, gates.new_ones(rows, 1)], 1)  # (rows, G + 1)
        by_input = {
            name for name in self.sources if rows > 1 or self._input_is_smaller(name, len(x))
        }
        weights = {
            f"{name}.weight": layers.scale_inputs(
                self.model.get_submodule(name), self._read_by(name, padded[0])
            )
            for name in self.sources
            if name not in by_input
        }
        with self._scaled_inputs(padded, by_input):
            output: Tensor = functional_call(self.model, weights, (x,))
        return output

    def _gates(self, samples: int) -> Tensor:
        """The gates (rows, G) of one forward pass: one row, or one for each sample."""
        if not self.training:
            return settled(self.log_alpha)[None]
        return self._draw((samples if self.per == "sample" else 1, len(self.log_alpha)))

    def _draw(self, shape: tuple[int, int]) -> Tensor:
        """Random gates of `shape` (rows, G)."""
        uniform = torch.rand(shape, device=self.log_alpha.device, dtype=self.log_alpha.dtype)
        return hard_concrete(self.log_alpha, 0.5 + self.noise * (uniform - 0.5))

    def _input_is_smaller(self, name: str, samples: int) -> bool:
        """Are the inputs of a consumer for so many samples fewer numbers than its weights? False
        before its first run.
        """
        weight = self.model.get_submodule(name).weight  # under vmap a tensor, no Parameter
        return (
            isinstance(weight, Tensor)
            and name in self._read
            and samples * self._read[name] < weight.numel()
        )

    def _scaled_inputs(
        self, padded: Tensor, names: Collection[str]
    ) -> AbstractContextManager[None]:
        """Inside the context, the consumers `names` multiply their inputs by their gates, of
        `padded` (rows, G + 1); the size of all consumers' inputs is noted.
        """

        def scaling(name: str) -> Callable[[nn.Module, Inputs], Inputs | None]:
            def hook(layer: nn.Module, inputs: Inputs) -> Inputs | None:
                value = inputs[0]
                self._read[name] = value.numel() // max(1, len(value))
                if name not in names:
                    return None
                factor = self._read_by(name, padded)  # (rows, in)
                shape = [1] * value.dim()
                shape[0] = len(factor)
                shape[1 if layers.is_conv(layer) else value.dim() - 1] = factor.shape[1]
                return (value * factor.reshape(shape), *inputs[1:])

            return hook

        return hooked(
            self.model.get_submodule(name).register_forward_pre_hook(scaling(name))
            for name in self.sources
        )

    def distance(self, share: float) -> Tensor:
        """The L0 loss: mean over groups of (share - mean P(open))^2, a scalar."""
        means = torch.stack(
            [open_probability(self.of_group(group.name)).mean() for group in self.graph.groups]
        )
        return (share - means).square().mean()

    @torch.no_grad()
    def folded(self) -> nn.Module:
        """The network without gates in which every consumer's weight contains the deterministic
        gates: it computes what `self` does in eval mode.
        """
        padded = torch.cat([settled(self.log_alpha), self.log_alpha.new_ones(1)])  # (G + 1,)
        changed = {}
        for name in self.sources:
            factor = self._read_by(name, padded)  # (in,)
            weight = layers.scale_inputs(self.model.get_submodule(name), factor)
            changed[name] = layers.Resized({"weight": weight.detach().clone()}, {})
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


# The cut


@dataclass(frozen=True)
class GroupStatistics:
    """Gates of one group: mean P(open), the share that is more likely open than not, and the mean
    entropy in bits.

    `agreement` is the share of channels that are likely open and that the cut keeps, or likely
    closed and that it drops.
    """

    group: str
    size: int
    kept: int
    mean_open: float
    likely_open: float
    entropy: float
    agreement: float


def statistics(openness: Scores, keep: Keep) -> list[GroupStatistics]:
    """Statistics of the probabilities of being open (C,) of each group, and how `keep` agrees with
    them.
    """
    rows = []
    for group, values in openness.items():
        likely = values > 0.5
        kept = keep.get(group, torch.ones(group.size, dtype=torch.bool))
        safe = values.clamp(1e-9, 1 - 1e-9)
        entropy = -(safe * safe.log2() + (1 - safe) * (1 - safe).log2())
        rows.append(
            GroupStatistics(
                group=group.name,
                size=group.size,
                kept=int(kept.sum()),
                mean_open=float(values.mean()),
                likely_open=float(likely.double().mean()),
                entropy=float(entropy.mean()),
                agreement=float((likely == kept).double().mean()),
            )
        )
    return rows


def most_open(scores: Scores, share: float) -> dict[ChannelGroup, Tensor]:
    """For each group a keep mask (C,) of the round(share * C) channels most likely to be open, at
    least one; of equal ones the first.
    """
    keep = {}
    for group, values in scores.items():
        count = max(1, round(share * group.size))
        mask = torch.zeros(group.size, dtype=torch.bool)
        mask[values.argsort(descending=True, stable=True)[:count]] = True
        keep[group] = mask
    return keep


# The weight of the L0 loss

LAMBDAS = ("fitted", "source", "linear", "cosine", "constant")
SOURCE_STEP = 0.05
FITTED_LAST = 100.0
"""The last weight of the fitted schedule: a mean P(open) that is 0.1 off then costs 1."""
SOURCE_RATE = 10.0
"""Learning rate of the gates over that of the weights (Pašen 2022)."""
TRAVEL = 70.0
"""How far a gate's location can move in a training with the fitted rate; from open to closed it is
a tenth of that.
"""


def lambdas(schedule: str, epochs: int, start: float = 0.01) -> list[float]:
    """Weight of the L0 loss in every epoch.

    `fitted` grows with the progress of the run up to `FITTED_LAST`, whatever its length: at its end
    the gates' mean is the share that is to be kept. `source` grows from epoch to epoch by 0.05
    sqrt(lambda) (Pašen 2022), which takes some 150 epochs. `linear` and `cosine`
    reach the same last value along a straight line or half a cosine; `constant` has it throughout.
    `start` must be above 0, since zero is a fixed point of the source's schedule; else raises
    `ValueError`.
    """
    if start <= 0:
        raise ValueError(f"lambda starts at {start}: it must be above 0")
    if schedule == "fitted":
        rest = (FITTED_LAST - start) / max(1, epochs - 1)
        return [start + rest * epoch for epoch in range(epochs)]
    values = [start]
    for _ in range(epochs - 1):
        values.append(values[-1] + SOURCE_STEP * math.sqrt(values[-1]))
    if schedule == "source":
        return values
    last = values[-1]
    steps = max(1, epochs - 1)
    if schedule == "linear":
        return [start + (last - start) * e / steps for e in range(epochs)]
    if schedule == "cosine":
        return [
            start + (last - start) * (1 - math.cos(math.pi * e / steps)) / 2 for e in range(epochs)
        ]
    return [last] * epochs


def fitted_rate(steps: int, rate: float) -> float:
    """Learning rate of the gates over `rate`, that of the weights, such that gates can decide
    within so many `steps`; never below the source's. Adam moves a gate by at most its rate a step,
    and on average a schedule has half the rate.
    """
    return max(SOURCE_RATE, TRAVEL / (0.5 * rate * max(1, steps)))
