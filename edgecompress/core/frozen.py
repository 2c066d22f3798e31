"""What of a network cannot be cut, and why: shares of its parameters and MACs."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from torch import nn

from edgecompress.core.graph import ChannelGraph
from edgecompress.core.labels import INPUT, OUTPUT


@dataclass(frozen=True)
class Frozen:
    """Shares (0..1) of parameters and MACs in layers of which no channel can go, and the share of
    the parameters by reason, the largest first.
    """

    params: float
    macs: float
    reasons: dict[str, float]
    lines: dict[str, list[str]] = field(default_factory=dict)
    """The lines of code behind a reason (`net.py:12`), where they are known."""

    def text(self) -> str:
        """`12 % of the parameters and 3 % of the MACs cannot be cut: ...`."""
        why = ", ".join(f"{reason} {share:.0%}" for reason, share in list(self.reasons.items())[:3])
        rest = f", and {len(self.reasons) - 3} more" if len(self.reasons) > 3 else ""
        head = f"{self.params:.0%} of the parameters and {self.macs:.0%} of the MACs cannot be cut"
        return f"{head}: {why}{rest}" if why else head


def frozen_share(model: nn.Module, graph: ChannelGraph) -> Frozen:
    """What of `model` cannot be cut. A layer between the network's input and output alone counts
    as "the network's input" or output; one without any traced channel as not reached.
    """
    movable = {member.layer for group in graph.groups for member in group.members}
    why: dict[str, list[str]] = defaultdict(list)
    for group in graph.frozen:
        for member in group.members:
            why[member.layer].append(str(group.frozen))
    total = sum(p.numel() for p in model.parameters()) or 1
    reasons: dict[str, float] = defaultdict(float)
    macs = 0
    for name, module in model.named_modules():
        held = _held(name, movable)
        own = sum(p.numel() for p in module.parameters(recurse=False))
        if held and own:
            given = [reason for reason in why.get(name, []) if reason not in (INPUT, OUTPUT)]
            reasons[(given or why.get(name) or ["not reached by any channel"])[0]] += own / total
        macs += graph.macs.get(name, 0) if held else 0
    ordered = dict(sorted(reasons.items(), key=lambda item: -item[1]))
    all_macs = sum(graph.macs.values()) or 1
    lines = {reason: list(graph.lines[reason]) for reason in ordered if reason in graph.lines}
    return Frozen(sum(ordered.values()), macs / all_macs, ordered, lines)


def _held(layer: str, movable: set[str]) -> bool:
    """Is no channel of it in a prunable group? Bare tensors stand under their own names."""
    return layer not in movable and not any(
        name.rpartition(".")[0] == layer for name in movable if name
    )
