"""edgecompress: make a neural network small enough for the device it must run on, and prove what it
lost.

    import edgecompress as ec
    graph = ec.trace(model, example)
    small = ec.shrink(model, {group: mask for group, mask in ...})

The names below are the public API; they are loaded when first used, so that importing the package
imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgecompress.checkpoint import load, save
    from edgecompress.compress import recipe_for
    from edgecompress.core.graph import ChannelGraph, ChannelGroup, Member, trace
    from edgecompress.core.shrink import masked, shrink
    from edgecompress.data import load_data
    from edgecompress.errors import EdgecompressError
    from edgecompress.measure.cost import cost
    from edgecompress.models import ModelSource, build
    from edgecompress.pipeline import execute

_WHERE = {
    "ChannelGraph": "core.graph",
    "ChannelGroup": "core.graph",
    "EdgecompressError": "errors",
    "Member": "core.graph",
    "ModelSource": "models",
    "build": "models",
    "cost": "measure.cost",
    "execute": "pipeline",
    "load": "checkpoint",
    "load_data": "data",
    "masked": "core.shrink",
    "recipe_for": "compress",
    "save": "checkpoint",
    "shrink": "core.shrink",
    "trace": "core.graph",
}

__version__ = "0.1.0"
__all__ = [
    "ChannelGraph",
    "ChannelGroup",
    "EdgecompressError",
    "Member",
    "ModelSource",
    "build",
    "cost",
    "execute",
    "load",
    "load_data",
    "masked",
    "recipe_for",
    "save",
    "shrink",
    "trace",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'edgecompress' has no attribute '{name}'")
    return getattr(importlib.import_module(f"edgecompress.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
