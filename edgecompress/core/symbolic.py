"""`torch.fx` traces of a network, and copies of it on the meta device.

torch.fx replaces `nn.Module.__call__` for the entire process while it traces. `symbolic_trace`
keeps that change to its own thread, so that other threads can run and train networks in the
meantime.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from edgecompress.errors import UsageError, blamed


def computed_tensors(model: nn.Module) -> list[Tensor]:
    """Tensors (...) that are plain attributes of a module, as `torch.nn.utils.prune` leaves
    `weight`.

    `copy.deepcopy` refuses them, since they are not leaves of the autograd graph.
    """
    return [
        value
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor)
    ]


def real_copy(model: nn.Module, memo: dict[int, object] | None = None) -> nn.Module:
    """`copy.deepcopy` with `memo`, also of a network that keeps tensors which it has computed."""
    kept = {id(tensor): tensor.detach().clone() for tensor in computed_tensors(model)}
    return copy.deepcopy(model, {**kept, **(memo or {})})


def meta_copy(model: nn.Module, *, integers: bool = False) -> nn.Module:
    """A structural copy of `model` in eval mode with all tensors on the meta device: no weight is
    read or copied. With `integers`, buffers of integers and booleans, which may be indices, keep
    their values.
    """
    memo: dict[int, object] = {
        id(tensor): torch.empty_like(tensor, device="meta", requires_grad=False)
        for tensor in computed_tensors(model)
    }
    for tensor in [*model.parameters(), *model.buffers()]:
        if integers and not (tensor.is_floating_point() or tensor.is_complex()):
            continue
        empty = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = (
            nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
        )
    return copy.deepcopy(model, memo).eval()


class ThreadTracer(fx.Tracer):
    """Records only what its own thread runs; calls from other threads pass through untraced."""

    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.get_ident()

    def is_foreign(self) -> bool:
        """Is this another thread than the one that traces?"""
        return threading.get_ident() != self._thread

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],  # the signature of fx.Tracer
    ) -> Any:
        """A module that is called."""
        if self.is_foreign():
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """A parameter that is read."""
        if self.is_foreign():
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)


tracing = threading.RLock()
"""Held by the thread that traces: two traces at once would undo each other's patch of
`nn.Module`.
"""


def symbolic_trace(model: nn.Module) -> fx.GraphModule:
    """The `torch.fx` trace of `model`. Other threads may run and train networks in the meantime.

    Raises `UsageError` with the reason when torch.fx cannot trace the model.
    """
    try:
        with tracing:
            tracer = ThreadTracer()
            graph = tracer.trace(model)
            return fx.GraphModule(tracer.root, graph, type(model).__name__)
    except Exception as error:  # fx raises whatever the model's own code raises on a Proxy
        raise UsageError(
            f"{type(model).__name__} cannot be traced by torch.fx: {blamed(error)}; make its "
            "forward free of branches on tensor values"
        ) from error
