"""Greedy merging: which channels of a wide network matter, layer by layer from the output back;
then a student that mimics them.

Identify: the groups of channels are processed from the one that is read last. A gate on each of its
channels, and a copy of the weights that read it, are trained so that the outputs of the readers on
the channels already chosen remain what they were, while the L0 loss pulls the open share to the
requested one; the channels most likely to be open are chosen. Mimic: the student has the chosen
channels; each of its layers, from the input on, is trained to compute, from what the student has
computed so far, the wide network's outputs on those channels.

Both work on activations that are computed once and held, so each costs one layer's training per
layer: linear in the depth. Loosely after Pašen (2022), who left it unsolved.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from edgecompress.core import ChannelGraph, ChannelGroup, consumers, layers
from edgecompress.core.convolutions import safe_convolutions
from edgecompress.core.graph import symbolic_trace
from edgecompress.core.shrink import Keep, kept_positions, shrink
from edgecompress.methods.activations import CHUNK, inputs_of, samples_within
from edgecompress.methods.gates import LOCATION, SPREAD, hard_concrete, most_open, open_probability
from edgecompress.train.optimizers import ParameterGroup

__all__ = ["GreedySettings", "LayerRow", "identify", "inputs_of", "mimic", "samples_within"]


@dataclass(frozen=True)
class GreedySettings:
    """`share` of each group's channels is kept. A layer trains for one epoch per entry of
    `lambdas`, the weights of the L0 loss, in batches, with Adam.

    `rate` is the learning rate of weights, `gate_rate` that of gates over it.
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
"""(steps done, steps in total, what is done)."""


def _shuffled(count: int, size: int, generator: torch.Generator) -> Sequence[Tensor]:
    """The batches of one epoch: positions (B,) below `count`, in random order."""
    batches: Sequence[Tensor] = torch.randperm(count, generator=generator).split(size)
    return batches


# Identify


def identify(
    model: nn.Module,
    graph: ChannelGraph,
    inputs: Tensor,
    settings: GreedySettings,
    on_step: Progress | None = None,
) -> tuple[dict[ChannelGroup, Tensor], dict[ChannelGroup, Tensor]]:
    """The channels that matter, from the output back: keep masks (C,) with `settings.share` of each
    group, and P(open) (C,) of each. `inputs` are (N, ...).
    """
    readers = {
        group: list(dict.fromkeys(member.layer for member in consumers(model, group)))
        for group in graph.groups
    }
    names = list(dict.fromkeys(name for layers_ in readers.values() for name in layers_))
    cached = inputs_of(model, names, inputs)
    keep: dict[ChannelGroup, Tensor] = {}
    openness: dict[ChannelGroup, Tensor] = {}
    order = _from_the_output(graph, readers, list(cached))
    for number, group in enumerate(order, start=1):
        kept = kept_positions(model, keep)
        parts = [
            _Reader(model, name, group, cached[name], kept.get(name, {})) for name in readers[group]
        ]
        openness[group] = _openness(group.size, parts, len(inputs), inputs.device, settings)
        keep |= most_open({group: openness[group]}, settings.share)
        if on_step is not None:
            on_step(number, len(order), "which channels matter")
    return keep, openness


def _from_the_output(
    graph: ChannelGraph, readers: Mapping[ChannelGroup, Sequence[str]], executed: Sequence[str]
) -> list[ChannelGroup]:
    """The groups, those first whose last reader is executed last."""
    place = {name: number for number, name in enumerate(executed)}

    def last_read(group: ChannelGroup) -> int:
        return max((place[name] for name in readers[group]), default=-1)

    return sorted(graph.groups, key=last_read, reverse=True)


def _openness(
    size: int,
    readers: Sequence[_Reader],
    samples: int,
    device: torch.device,
    settings: GreedySettings,
) -> Tensor:
    """P(open) (C,) of the `size` channels of a group, after training their gates on the outputs of
    its readers for so many `samples`.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    start = LOCATION + SPREAD * torch.randn(size, generator=generator)
    log_alpha = nn.Parameter(start.to(device))  # (C,)
    weights = [p for reader in readers for p in reader.layer.parameters()]
    gate_group: ParameterGroup = {
        "params": [log_alpha],
        "lr": settings.rate * settings.gate_rate,
    }
    optimizer = torch.optim.Adam([{"params": weights}, gate_group], lr=settings.rate)
    for weight in settings.lambdas:
        for ids in _shuffled(samples, settings.batch_size, generator):
            uniform = torch.rand(size, generator=generator).to(device)
            gates = hard_concrete(log_alpha, uniform)  # (C,)
            loss = weight * (settings.share - open_probability(log_alpha).mean()).square()
            with safe_convolutions(device):
                for reader in readers:
                    loss = loss + reader.error(ids.to(device), gates)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return open_probability(log_alpha.detach()).double().cpu()


class _Reader:
    """A layer that reads a group: its trainable copy `layer`, its `inputs` (N, in, ...), and its
    outputs on the channels chosen so far; `kept` has the positions (size,) bool of its axes that
    remain.

    `open` (in,) is 0 where an input has been dropped. `source` (in,) is the channel of the group
    that an input carries, C for none.
    """

    def __init__(
        self,
        model: nn.Module,
        name: str,
        group: ChannelGroup,
        inputs: Tensor,
        kept: Mapping[str, Tensor],
    ) -> None:
        self.original = model.get_submodule(name)
        self.layer = copy.deepcopy(self.original).requires_grad_(True)
        self.inputs = inputs
        size = layers.axis_size(self.original, "in")
        self.open = kept.get("in", torch.ones(size, dtype=torch.bool)).to(inputs)
        self.chosen = kept["out"].nonzero()[:, 0].to(inputs.device) if "out" in kept else None
        self.source = _channels_read(group, name, size).to(inputs.device)
        with torch.no_grad():
            outputs = self._on_chosen(self.original(inputs[:CHUNK]))
        self.variance = float(outputs.var().clamp_min(1e-12))

    def _on_chosen(self, outputs: Tensor) -> Tensor:
        return outputs if self.chosen is None else outputs.index_select(1, self.chosen)

    def error(self, ids: Tensor, gates: Tensor) -> Tensor:
        """Mean square error, a scalar, on the chosen outputs over their variance, for the samples
        `ids` (B,) with `gates` (C,).
        """
        inputs = self.inputs[ids]
        with torch.no_grad():
            target = self._on_chosen(self.original(inputs))
        factor = torch.cat([gates, gates.new_ones(1)])[self.source] * self.open  # (in,)
        weight = layers.scale_inputs(self.layer, factor)
        outputs = functional_call(self.layer, {"weight": weight}, (inputs,))
        return (self._on_chosen(outputs) - target).square().mean() / self.variance


def _channels_read(group: ChannelGroup, name: str, size: int) -> Tensor:
    """The channel of `group` that each of the `size` inputs of layer `name` carries, (in,); C for
    none.
    """
    source = torch.full((size,), group.size)
    channels = torch.arange(group.size)[:, None]  # (C, 1)
    for member in group.members:
        if (member.layer, member.axis) == (name, "in"):
            source[member.index] = channels.expand_as(member.index)
    return source


# Mimic


def mimic(
    model: nn.Module,
    keep: Keep,
    inputs: Tensor,
    settings: GreedySettings,
    on_step: Progress | None = None,
) -> tuple[nn.Module, list[LayerRow]]:
    """The student with the channels in `keep`, each mixing layer trained in turn to compute what
    `model` computes on them, for `inputs` (N, ...).
    """
    small = shrink(model, keep).eval().requires_grad_(True)
    kept = kept_positions(model, keep)
    student = _Walk(symbolic_trace(small), inputs)
    teacher = _Walk(symbolic_trace(model.eval()), inputs)
    total = sum(student.mixing(node) is not None for node in student.nodes)
    rows: dict[str, LayerRow] = {}
    for node, teacher_node in zip(student.nodes, teacher.nodes, strict=True):
        name = str(node.target)
        layer = student.mixing(node)
        target = teacher.compute(teacher_node)
        if layer is not None and name not in rows:
            chosen = kept.get(name, {}).get("out")
            if chosen is not None:
                target = target[:, chosen.to(target.device)]
            rows[name] = _mimicked(name, layer, student.input(node), target, settings)
            if on_step is not None:
                on_step(len(rows), total, "mimic")
        student.compute(node)
    return small.cpu(), list(rows.values())


class _Walk:
    """A traced network that computes one node after the other, and releases what no later node
    reads.
    """

    def __init__(self, traced: fx.GraphModule, inputs: Tensor) -> None:
        self.interpreter = fx.Interpreter(traced)
        self.inputs = inputs
        self.nodes = list(traced.graph.nodes)
        self.modules = dict(traced.named_modules())

    def mixing(self, node: fx.Node) -> nn.Module | None:
        """The mixing layer that `node` calls, if it does."""
        layer = self.modules.get(str(node.target)) if node.op == "call_module" else None
        return layer if layer is not None and layers.is_mixing(layer) else None

    def input(self, node: fx.Node) -> Tensor:
        """The first argument (N, ...) of `node`."""
        value: Tensor = self.interpreter.env[node.args[0]]  # type: ignore[index]
        return value

    @torch.no_grad()
    def compute(self, node: fx.Node) -> Tensor:
        """The value (N, ...) of `node`, whose arguments have been computed."""
        if node.op == "output":
            return self.inputs
        value = self._value(node)
        self.interpreter.env[node] = value
        for unused in self.interpreter.user_to_last_uses.get(node, []):
            self.interpreter.env.pop(unused, None)
        return value

    def _value(self, node: fx.Node) -> Tensor:
        if node.op == "placeholder":
            return self.inputs
        layer = self.mixing(node)
        if layer is None:
            value: Tensor = self.interpreter.run_node(node)
            return value
        return torch.cat([layer(chunk) for chunk in self.input(node).split(CHUNK)])


def _mimicked(
    name: str, layer: nn.Module, inputs: Tensor, target: Tensor, settings: GreedySettings
) -> LayerRow:
    """Train `layer` in place to compute `target` (N, ...) from `inputs` (N, ...). If that makes it
    worse, its former weights are restored.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    variance = float(target.var().clamp_min(1e-12))
    before = _error(layer, inputs, target) / variance
    former = copy.deepcopy(layer.state_dict())

    optimizer = torch.optim.Adam(layer.parameters(), lr=settings.rate)
    steps = max(1, len(settings.lambdas) * -(-len(inputs) // settings.batch_size))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, steps)
    for _ in settings.lambdas:
        for ids in _shuffled(len(inputs), settings.batch_size, generator):
            ids = ids.to(inputs.device)
            with safe_convolutions(inputs.device):
                loss = (layer(inputs[ids]) - target[ids]).square().mean() / variance
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()

    after = _error(layer, inputs, target) / variance
    if after > before:
        layer.load_state_dict(former)
    return LayerRow(name, before, min(before, after))


@torch.no_grad()
def _error(layer: nn.Module, inputs: Tensor, target: Tensor) -> float:
    """Mean square error of the outputs of `layer` for `inputs` (N, ...), chunk by chunk."""
    chunks = zip(inputs.split(CHUNK), target.split(CHUNK), strict=True)
    total = sum(float((layer(x) - y).square().mean()) * len(x) for x, y in chunks)
    return total / len(inputs)
