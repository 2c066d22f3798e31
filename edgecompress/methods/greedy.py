"""Greedy merging: which channels of a wide network matter, layer by layer from the output back;
then a student that mimics them.

Identify: the groups of channels are taken from the one that is read last. A gate on each of its
channels, and a copy of the weights that read it, are trained so that what the readers write on the
channels already chosen stays what it was, while the L0 loss draws the open share to the one wanted;
the most probably open channels are chosen. Mimic: the student has the chosen channels; each of its
layers, from the input on, is trained to write from what the student has computed so far what the
wide network writes on them.

Both work on activations that are computed once and kept, so each costs one layer's training a
layer: linear in the depth. Loosely after Pašen (2022), who left it unsolved.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from edgecompress.core import ChannelGraph, ChannelGroup, consumers, layers
from edgecompress.core.convolutions import safe_convolutions
from edgecompress.core.graph import symbolic_trace
from edgecompress.core.shrink import Keep, kept_positions, shrink
from edgecompress.methods.gates import LOCATION, SPREAD, hard_concrete, most_open, open_probability

CHUNK = 256
"""Samples that go through a network at once."""
KEPT_BYTES = 10**9
"""Bytes that the kept activations may take."""


@dataclass(frozen=True)
class GreedySettings:
    """`lambdas` has the weight of the L0 loss for each epoch of a layer; a layer trains for as many
    epochs, in batches, by Adam.
    """

    share: float
    lambdas: Sequence[float]
    batch_size: int = 64
    rate: float = 1e-3
    gate_rate: float = 10.0
    seed: int = 0


@dataclass(frozen=True)
class LayerRow:
    """How well a layer of the student mimics: mean square error over the target's variance, before
    and after its training.
    """

    layer: str
    before: float
    after: float


Progress = Callable[[int, int, str], None]


def samples_within(model: nn.Module, example: Tensor, limit: int = KEPT_BYTES) -> int:
    """How many samples' inputs of all mixing layers fit into `limit` bytes, at least 64."""
    seen: dict[str, Tensor] = {}
    with (
        _recorded(
            model, [name for name, layer in model.named_modules() if layers.is_mixing(layer)], seen
        ),
        torch.no_grad(),
    ):
        model.eval()(example[:1])
    return max(
        64, limit // max(1, sum(value.numel() * value.element_size() for value in seen.values()))
    )


class _recorded:
    """While it lasts, the inputs of the layers `names` are written to `seen`, the last call's only;
    `seen` has the order of the calls.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], seen: dict[str, Tensor]) -> None:
        self.handles = [
            model.get_submodule(name).register_forward_pre_hook(self._note(name, seen))
            for name in names
        ]

    @staticmethod
    def _note(name: str, seen: dict[str, Tensor]) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            seen.pop(name, None)
            seen[name] = inputs[0].detach()

        return hook

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()


@torch.no_grad()
def inputs_of(model: nn.Module, names: Sequence[str], inputs: Tensor) -> dict[str, Tensor]:
    """What the layers `names` read when `model` computes `inputs` (N, ...), in the order in which
    they are called.
    """
    parts: dict[str, list[Tensor]] = {}
    for chunk in inputs.split(CHUNK):
        seen: dict[str, Tensor] = {}
        with _recorded(model, names, seen):
            model.eval()(chunk)
        for name, value in seen.items():
            parts.setdefault(name, []).append(value)
    return {name: torch.cat(values) for name, values in parts.items()}


def identify(
    model: nn.Module,
    graph: ChannelGraph,
    inputs: Tensor,
    settings: GreedySettings,
    on_step: Progress | None = None,
) -> tuple[dict[ChannelGroup, Tensor], dict[ChannelGroup, Tensor]]:
    """The channels that matter, from the output back: masks (C,) that keep `settings.share` of each
    group, and P(open) of each (C,).
    """
    readers = {group: consumers(model, group) for group in graph.groups}
    names = list(dict.fromkeys(member.layer for members in readers.values() for member in members))
    cached = inputs_of(model, names, inputs)
    place = {name: number for number, name in enumerate(cached)}
    order = sorted(
        graph.groups,
        key=lambda g: max((place[m.layer] for m in readers[g]), default=-1),
        reverse=True,
    )
    keep: dict[ChannelGroup, Tensor] = {}
    found: dict[ChannelGroup, Tensor] = {}
    for number, group in enumerate(order, start=1):
        found[group] = _openness(
            model, group, [m.layer for m in readers[group]], cached, keep, settings
        )
        keep |= most_open({group: found[group]}, settings.share)
        if on_step is not None:
            on_step(number, len(order), "which channels matter")
    return keep, found


def _openness(
    model: nn.Module,
    group: ChannelGroup,
    names: Sequence[str],
    cached: Mapping[str, Tensor],
    keep: Keep,
    settings: GreedySettings,
) -> Tensor:
    """P(open) (C,) of the channels of `group`, after training their gates on what its readers, the
    layers `names`, write.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    device = next(iter(cached.values())).device
    log_alpha = nn.Parameter(
        (LOCATION + SPREAD * torch.randn(group.size, generator=generator)).to(device)
    )
    readers = [_Reader(model, name, group, cached[name], keep) for name in dict.fromkeys(names)]
    weights = [p for reader in readers for p in reader.layer.parameters()]
    groups: list[dict[str, Any]] = [
        {"params": weights},
        {"params": [log_alpha], "lr": settings.rate * settings.gate_rate},
    ]
    optimizer = torch.optim.Adam(groups, lr=settings.rate)
    count = len(next(iter(cached.values())))
    for weight in settings.lambdas:
        for ids in torch.randperm(count, generator=generator).split(settings.batch_size):
            gates = hard_concrete(log_alpha, torch.rand(group.size, generator=generator).to(device))
            loss = weight * (settings.share - open_probability(log_alpha).mean()).square()
            with safe_convolutions():
                for reader in readers:
                    loss = loss + reader.error(ids.to(device), gates)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return open_probability(log_alpha.detach()).double().cpu()


class _Reader:
    """A layer that reads a group: its trainable copy, what it reads, and what it wrote on the
    channels that were chosen.
    """

    def __init__(
        self, model: nn.Module, name: str, group: ChannelGroup, inputs: Tensor, keep: Keep
    ) -> None:
        original = model.get_submodule(name)
        self.layer, self.inputs = copy.deepcopy(original).requires_grad_(True), inputs
        self.original = original
        chosen = kept_positions(model, keep).get(name, {})
        self.written = chosen["out"].nonzero()[:, 0].to(inputs.device) if "out" in chosen else None
        size = layers.axis_size(original, "in")
        self.open = (chosen["in"] if "in" in chosen else torch.ones(size, dtype=torch.bool)).to(
            inputs
        )
        self.source = torch.full((size,), group.size)
        for member in group.members:
            if (member.layer, member.axis) == (name, "in"):
                self.source[member.index] = torch.arange(group.size)[:, None].expand_as(
                    member.index
                )
        self.source = self.source.to(inputs.device)
        with torch.no_grad():
            self.variance = float(self._chosen(original(inputs[:CHUNK])).var().clamp_min(1e-12))

    def _chosen(self, outputs: Tensor) -> Tensor:
        return outputs if self.written is None else outputs.index_select(1, self.written)

    def error(self, ids: Tensor, gates: Tensor) -> Tensor:
        """Mean square error on the chosen outputs, over their variance, for the samples `ids`."""
        inputs = self.inputs[ids]
        with torch.no_grad():
            wanted = self._chosen(self.original(inputs))
        factor = torch.cat([gates, gates.new_ones(1)])[self.source] * self.open
        found = functional_call(
            self.layer, {"weight": layers.scale_inputs(self.layer, factor)}, (inputs,)
        )
        return (self._chosen(found) - wanted).square().mean() / self.variance


def mimic(
    model: nn.Module,
    keep: Keep,
    inputs: Tensor,
    settings: GreedySettings,
    on_step: Progress | None = None,
) -> tuple[nn.Module, list[LayerRow]]:
    """The student with the channels in `keep`, each mixing layer trained in turn to write what
    `model` writes on them, for `inputs`.
    """
    small = shrink(model, keep).eval().requires_grad_(True)
    kept = kept_positions(model, keep)
    pair = [_Walk(symbolic_trace(network), inputs) for network in (small, model.eval())]
    rows: list[LayerRow] = []
    nodes = list(zip(pair[0].nodes, pair[1].nodes, strict=True))
    total = sum(pair[0].mixing(node) is not None for node, _ in nodes)
    for mine, other in nodes:
        layer = pair[0].mixing(mine)
        if layer is not None and not any(row.layer == str(mine.target) for row in rows):
            target = pair[1].compute(other)
            where = kept.get(str(mine.target), {}).get("out")
            chosen = target if where is None else target[:, where.to(target.device)]
            rows.append(_mimicked(str(mine.target), layer, pair[0].input(mine), chosen, settings))
            if on_step is not None:
                on_step(len(rows), total, "mimic")
        else:
            pair[1].compute(other)
        pair[0].compute(mine)
    return small.cpu(), rows


class _Walk:
    """A traced network that computes one node after the other, and forgets what no later node
    reads.
    """

    def __init__(self, traced: fx.GraphModule, inputs: Tensor) -> None:
        self.run, self.inputs = fx.Interpreter(traced), inputs
        self.nodes, self.modules = list(traced.graph.nodes), dict(traced.named_modules())

    def mixing(self, node: fx.Node) -> nn.Module | None:
        """The mixing layer that `node` calls, if it does."""
        layer = self.modules.get(str(node.target)) if node.op == "call_module" else None
        return layer if layer is not None and layers.is_mixing(layer) else None

    def input(self, node: fx.Node) -> Tensor:
        """What `node` reads first."""
        value: Tensor = self.run.env[node.args[0]]  # type: ignore[index]
        return value

    @torch.no_grad()
    def compute(self, node: fx.Node) -> Tensor:
        """The value of `node`."""
        if node.op == "placeholder":
            value = self.inputs
        elif node.op == "output":
            return self.inputs
        elif self.mixing(node) is not None:
            layer = self.modules[str(node.target)]
            value = torch.cat([layer(chunk) for chunk in self.input(node).split(CHUNK)])
        else:
            value = self.run.run_node(node)
        self.run.env[node] = value
        for gone in self.run.user_to_last_uses.get(node, []):
            self.run.env.pop(gone, None)
        return value


def _mimicked(
    name: str, layer: nn.Module, inputs: Tensor, target: Tensor, settings: GreedySettings
) -> LayerRow:
    """Train `layer` in place to give `target` (N, ...) for `inputs` (N, ...)."""
    generator = torch.Generator().manual_seed(settings.seed)
    variance = float(target.var().clamp_min(1e-12))

    @torch.no_grad()
    def error() -> float:
        parts = zip(inputs.split(CHUNK), target.split(CHUNK), strict=True)
        return (
            sum(float((layer(x) - y).square().mean()) * len(x) for x, y in parts)
            / len(inputs)
            / variance
        )

    before, best = error(), copy.deepcopy(layer.state_dict())
    optimizer = torch.optim.Adam(layer.parameters(), lr=settings.rate)
    steps = max(1, len(settings.lambdas) * -(-len(inputs) // settings.batch_size))
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, steps)
    for _ in settings.lambdas:
        for ids in torch.randperm(len(inputs), generator=generator).split(settings.batch_size):
            ids = ids.to(inputs.device)
            with safe_convolutions():
                loss = (layer(inputs[ids]) - target[ids]).square().mean() / variance
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            falling.step()
    after = error()
    if after > before:
        layer.load_state_dict(best)
    return LayerRow(name, before, min(before, after))
