"""What travels between teacher and student: one module per exchange.

To add an exchange, write a module that defines `EXCHANGE`, an instance of
`edgecompress.online.exchanges.base.Exchange`, and add one entry to `REGISTRY`. Modules are imported
when a lesson uses them, so the names are available without torch and gRPC.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from edgecompress.errors import UnknownChoiceError

if TYPE_CHECKING:
    from edgecompress.online.exchanges.base import Exchange
    from edgecompress.online.plan import Plan


@dataclass(frozen=True)
class Entry:
    """The module of an exchange; `trainable` is whether its teacher may train at the same time."""

    module: str
    trainable: bool = False


REGISTRY = {
    "logits": Entry("edgecompress.online.exchanges.logits", trainable=True),
    "inputs": Entry("edgecompress.online.exchanges.inputs"),
    "features": Entry("edgecompress.online.exchanges.features"),
    "weights": Entry("edgecompress.online.exchanges.weights", trainable=True),
}
"""The exchanges by the name that a plan gives them."""

MUTUAL = Entry("edgecompress.online.exchanges.mutual", trainable=True)
"""Exchange `logits` in both directions: mutual learning."""

EXCHANGES = tuple(REGISTRY)
TRAINING = tuple(name for name, entry in REGISTRY.items() if entry.trainable)
"""Exchanges whose teacher may train at the same time."""


def exchange_of(plan: Plan) -> Exchange:
    """The exchange that `plan` names. Raises `UsageError` for an unknown name."""
    if plan.exchange not in REGISTRY:
        raise UnknownChoiceError("--exchange", plan.exchange, REGISTRY)
    entry = MUTUAL if plan.mutual else REGISTRY[plan.exchange]
    exchange: Exchange = import_module(entry.module).EXCHANGE
    return exchange
