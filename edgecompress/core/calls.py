"""One call of an operation in a traced network, as the rules for labels see it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from edgecompress.core.ledger import Ledger, anonymous, flat

Argument = Any
"""What a traced call is given or returns: tensors, numbers, and containers of them."""


@dataclass(frozen=True)
class Call:
    """One call of an operation in the traced network."""

    name: str
    """Name of the function, the method, or the module's class."""
    node: fx.Node
    """Its arguments as they are in the code: a number there cannot follow a cut."""
    function: Callable[..., Argument]
    args: tuple[Argument, ...]
    """Its arguments, with tensors on the meta device."""
    kwargs: Mapping[str, Argument]
    labels: tuple[Argument, ...]
    """The same arguments, with labels in the place of tensors."""
    label_kwargs: Mapping[str, Argument]
    out: Argument

    @property
    def label_tensors(self) -> list[Tensor]:
        """The labels of every tensor among the arguments, int64 in its shape (...)."""
        leaves = [*flat(self.labels), *flat(dict(self.label_kwargs))]
        return [leaf for leaf in leaves if isinstance(leaf, Tensor)]

    def replay(self) -> Argument:
        """Run the operation on the labels themselves."""
        return self.function(*self.labels, **self.label_kwargs)

    def given(self, place: int, name: str) -> Argument:
        """The argument at `place`, or called `name`, as it is in the code; None without one."""
        return self.node.kwargs.get(name, self.written(place))

    def written(self, place: int, default: Argument = None) -> Argument:
        """The positional argument at `place` as it is in the code."""
        return self.node.args[place] if len(self.node.args) > place else default


Rule = Callable[[Ledger, Call, Tensor], Argument]
"""(ledger, call, its output, one tensor) -> labels of the output."""


def unknown(ledger: Ledger, call: Call, out: Tensor) -> Argument:
    """An operation without a rule freezes what it reads; label 0 in the shape of `out` (...)."""
    ledger.freeze(call.label_tensors, f"operation {call.name}")
    return anonymous(out)
