"""What of a network cannot be cut: said once per run, and kept for its result."""

from __future__ import annotations

from torch import nn

from edgecompress.core import ChannelGraph
from edgecompress.core.frozen import frozen_share
from edgecompress.run.context import Context
from edgecompress.run.sections import FrozenSection
from edgecompress.run.state import State

SECTION = "frozen"


def with_frozen(context: Context, state: State, model: nn.Module, graph: ChannelGraph) -> State:
    """The state with the shares of `model` that cannot be cut; a note says them the first time."""
    if SECTION in state.sections:
        return state
    found = frozen_share(model, graph)
    if found.params > 0:
        context.reporter.note(found.text())
    section: FrozenSection = {
        "params": round(found.params, 6),
        "macs": round(found.macs, 6),
        "reasons": {reason: round(share, 6) for reason, share in found.reasons.items()},
        "lines": found.lines,
    }
    return state.with_section(SECTION, section)
