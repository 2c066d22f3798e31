"""edgecompress: make a neural network small enough for the device it must run on, and prove what it
lost.

    import edgecompress as ec

    graph = ec.trace(model, example)
    scores = ec.magnitude(model, graph, order=1)
    half = ec.Budget(ec.param_price(model, graph), ec.cost(model, example).params / 2)
    selection = ec.cheapest(model, graph, scores, (half,))
    small = ec.shrink(model, selection.keep)

A recipe runs with `ec.execute(ec.read_recipe(path), folder)`. The names below are the public API;
they are loaded when first used, so that importing the package imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgecompress.checkpoint import load, save
    from edgecompress.compress import recipe_for
    from edgecompress.core.graph import ChannelGraph, ChannelGroup, Member
    from edgecompress.core.proof import trace
    from edgecompress.core.select import Budget, Selection, cheapest, uniform
    from edgecompress.core.shrink import masked, shrink
    from edgecompress.core.stack import stack
    from edgecompress.data import load_data
    from edgecompress.errors import EdgecompressError
    from edgecompress.measure.cost import byte_price, cost, mac_price, param_price
    from edgecompress.methods.scores import batchnorm_scale, magnitude, taylor
    from edgecompress.models import ModelSource, build
    from edgecompress.pipeline import Outcome, execute
    from edgecompress.recipe import Recipe
    from edgecompress.recipe import read as read_recipe

_WHERE = {
    "Budget": "core.select",
    "ChannelGraph": "core.graph",
    "ChannelGroup": "core.graph",
    "EdgecompressError": "errors",
    "Member": "core.graph",
    "ModelSource": "models",
    "Outcome": "pipeline",
    "Recipe": "recipe",
    "Selection": "core.select",
    "batchnorm_scale": "methods.scores",
    "build": "models",
    "byte_price": "measure.cost",
    "cheapest": "core.select",
    "cost": "measure.cost",
    "execute": "pipeline",
    "load": "checkpoint",
    "load_data": "data",
    "mac_price": "measure.cost",
    "magnitude": "methods.scores",
    "masked": "core.shrink",
    "param_price": "measure.cost",
    "read_recipe": "recipe",
    "recipe_for": "compress",
    "save": "checkpoint",
    "shrink": "core.shrink",
    "stack": "core.stack",
    "taylor": "methods.scores",
    "trace": "core.proof",
    "uniform": "core.select",
}
_RENAMED = {"read_recipe": "read"}
"""Names that differ from those in their module."""

__version__ = "0.1.0"
__all__ = [
    "Budget",
    "ChannelGraph",
    "ChannelGroup",
    "EdgecompressError",
    "Member",
    "ModelSource",
    "Outcome",
    "Recipe",
    "Selection",
    "batchnorm_scale",
    "build",
    "byte_price",
    "cheapest",
    "cost",
    "execute",
    "load",
    "load_data",
    "mac_price",
    "magnitude",
    "masked",
    "param_price",
    "read_recipe",
    "recipe_for",
    "save",
    "shrink",
    "stack",
    "taylor",
    "trace",
    "uniform",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'edgecompress' has no attribute '{name}'")
    module = importlib.import_module(f"edgecompress.{_WHERE[name]}")
    return getattr(module, _RENAMED.get(name, name))


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
