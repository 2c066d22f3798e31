"""Parameters that train next to a network, and follow it when it is cut."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from edgecompress.core.shrink import Keep

Kept = dict[str, Any]
"""A resumable state: tensors, numbers and strings, nested, as `torch.save` writes them and loads
them with `weights_only`.
"""

Moved = tuple[nn.Parameter, nn.Parameter, Callable[[Tensor], Tensor]]
"""(a parameter before a cut, its replacement, how a moment of the first becomes one of the
second).
"""


class Companion(Protocol):
    """Parameters that train next to a network and are dropped after the training, e.g. the adapters
    of a feature loss.
    """

    def parameters(self) -> Iterable[nn.Parameter]:
        """The parameters to train."""

    def follow(self, model: nn.Module, small: nn.Module, keep: Keep) -> Sequence[Moved]:
        """Adapt to `small`, which `keep` cut from `model`; returns the parameters replaced."""

    def attach(self, model: nn.Module) -> None:
        """Called before each epoch of training, with the network that trains."""

    def detach(self) -> None:
        """Called after each epoch: release the network, which will be copied, cut and exported."""

    def kept(self) -> Kept:
        """The state to resume from."""

    def take(self, kept: Kept) -> None:
        """Restore a state of `kept`. The network's cuts up to that state have already been followed
        again.
        """


class Onlooker:
    """A `Companion` without parameters, which a cut does not change."""

    def parameters(self) -> Iterable[nn.Parameter]:
        """No parameters."""
        return ()

    def follow(self, model: nn.Module, small: nn.Module, keep: Keep) -> Sequence[Moved]:
        """No parameters to replace."""
        return ()

    def detach(self) -> None:
        """Nothing to release."""


class NoCompanion(Onlooker):
    """The companion of a network that trains without one."""

    def attach(self, model: nn.Module) -> None:
        """Nothing to attach."""

    def kept(self) -> Kept:
        """An empty state."""
        return {}

    def take(self, kept: Kept) -> None:
        """Nothing to restore."""
