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
    frozen = frozen_share(model, graph)
    if frozen.params > 0:
        context.reporter.note(frozen.text())
    section: FrozenSection = {
        "params": round(frozen.params, 6),
        "macs": round(frozen.macs, 6),
        "reasons": {reason: round(share, 6) for reason, share in frozen.reasons.items()},
        "lines": frozen.lines,
    }
    return state.with_section(SECTION, section)
