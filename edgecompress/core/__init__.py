"""Channel groups and what is done with them: trace, select, mask, shrink, and the lossless folds.
Imports torch only.
"""

from edgecompress.core.graph import ChannelGraph, ChannelGroup, Member, consumers, trace
from edgecompress.core.shrink import Keep, masked, shrink

__all__ = [
    "ChannelGraph",
    "ChannelGroup",
    "Keep",
    "Member",
    "consumers",
    "masked",
    "shrink",
    "trace",
]
