"""A `torch.fx` trace in which every value is known: what runs is what is traced.

    traced = concrete_trace(model, example)

Next to each node stands its value for `example`: tensors on the meta device, numbers, sizes. A
branch on a size, a loop over chunks, an optional argument or a type check therefore goes the way
that the network goes, and a size stays an operation of the graph, so that it can be told from a
number in the code. Forward hooks run; a constant, and every buffer of integers, is real.
"""

from __future__ import annotations

import contextlib
import functools
import operator
import os
import sys
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from edgecompress.core import layers, operations
from edgecompress.core.numbers import number_attributes_
from edgecompress.core.symbolic import ThreadTracer, meta_copy, tracing
from edgecompress.errors import UsageError, blamed

Value = Any
"""What a network computes with: tensors, numbers, sizes, and containers of them."""
_PLAIN = (bool, str, torch.dtype, torch.device, torch.layout, torch.memory_format, type(None))
"""Types of values that no cut changes: the traced code gets them as they are."""
_OF_RANK = ("ndim", "dim", "ndimension", "is_contiguous", "is_floating_point", "element_size")
"""Attributes and methods of a tensor whose results no cut changes."""


LINE = "line"
"""Under this name the metadata of a node has the line of code that called it, `net.py:12`."""
_LIBRARIES = tuple(str(Path(module.__file__ or "").parent) + os.sep for module in (torch, layers))
"""Folders whose code is not the network's own."""
_INSTALLED = tuple({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})


def _calling_line() -> str:
    """The innermost line of the network's own code that is running, of an installed package only
    where no other is; "" where PyTorch alone runs.
    """
    frame: FrameType | None = sys._getframe(1)
    line = ""  # the innermost line of an installed package
    while frame is not None and frame.f_code is not concrete_trace.__code__:
        path = frame.f_code.co_filename
        if not path.startswith(("<", *_LIBRARIES)):
            own = not path.startswith(_INSTALLED)
            if own or not line:
                line = f"{_shown(Path(path))}:{frame.f_lineno}"
            if own:
                return line
        frame = frame.f_back
    return line


def _shown(path: Path) -> str:
    """`net.py`, or `package/__init__.py`."""
    return f"{path.parent.name}/{path.name}" if path.name == "__init__.py" else path.name


@dataclass(frozen=True)
class Traced:
    """The graph of a network, the value of each of its nodes, and the copy that was traced."""

    root: nn.Module
    graph: fx.Graph
    values: dict[fx.Node, Value]


def concrete_trace(model: nn.Module, *examples: Tensor) -> Traced:
    """The trace of `model` in eval mode on inputs like `examples` (N, C, ...), of which only shape
    and dtype are used. No weight is read, other than buffers of integers.

    Raises `UsageError` with the reason and the line where the model's own code cannot run.
    """
    root = meta_copy(model, integers=True)
    for name, module in root.named_modules():
        if not layers.axes(module) and not type(module).__module__.startswith("torch.nn."):
            number_attributes_(module, name)
        _buffer_attributes_(module)
    tracer = _ConcreteTracer(examples)
    try:
        with tracing, torch.no_grad():
            graph = tracer.trace(root)
        return Traced(root, graph, tracer.values)
    except Exception as error:  # whatever the model's own code raises
        raise UsageError(
            f"{type(model).__name__} cannot run on an input of shape {shapes(examples)} "
            f"without its values: {blamed(error)}"
        ) from error


def _buffer_attributes_(module: nn.Module) -> None:
    """Make tensors that are plain attributes buffers, which the trace sees when they are read."""
    for name, value in list(vars(module).items()):
        if isinstance(value, Tensor) and name not in ("weight", "bias"):
            delattr(module, name)
            module.register_buffer(name, value, persistent=False)


def shapes(examples: Sequence[Tensor]) -> str:
    """The shapes of inputs (N, ...), for a message."""
    return ", ".join(str(tuple(example.shape)) for example in examples)


class _ValueProxy(fx.Proxy):
    """A proxy that answers questions about its value."""

    tracer: _ConcreteTracer

    @property
    def value(self) -> Value:
        """What it stands for."""
        return self.tracer.values[self.node]

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self.value)

    def __getattr__(self, name: str) -> Value:
        attribute = getattr(self.value, name)
        if callable(attribute) and not isinstance(attribute, Tensor):
            return functools.partial(self.tracer.method, self, name)
        if name in _OF_RANK or not isinstance(attribute, (Tensor, tuple, list, int, float)):
            return attribute
        return self.tracer.create_proxy("call_function", getattr, (self, name), {})

    def __setitem__(self, position: Value, value: Value) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, position, value), {})

    def __iter__(self) -> Iterator[Value]:
        return iter([self[place] for place in range(len(self))])  # type: ignore[index]

    def __len__(self) -> int:
        return len(self.value)

    def __bool__(self) -> bool:
        return bool(self.value)

    def __index__(self) -> int:
        return operator.index(self.value)

    def __int__(self) -> int:
        return int(self.value)

    def __float__(self) -> float:
        return float(self.value)

    def __contains__(self, item: Value) -> bool:
        return item in self.value

    def __hash__(self) -> int:
        return id(self)


class _ConcreteTracer(ThreadTracer):
    """Runs each operation on values as it records it."""

    proxy_buffer_attributes = True

    def __init__(self, examples: Sequence[Tensor]) -> None:
        super().__init__()
        self.values: dict[fx.Node, Value] = {}
        self._examples = [torch.empty_like(example, device="meta") for example in examples]
        self._running = False

    # -- What the traced code gets

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """What stands for the value of a node."""
        return _ValueProxy(node, self)

    def create_proxy(self, kind: str, target: Any, *args: Any, **kwargs: Any) -> Any:
        """The proxy of a new node, or its value where no cut changes that."""
        proxy = super().create_proxy(kind, target, *args, **kwargs)
        value = self.values[proxy.node]
        return value if isinstance(value, _PLAIN) else proxy

    def method(self, proxy: _ValueProxy, name: str, *args: Value, **kwargs: Value) -> Value:
        """What a method of the value returns."""
        made = self.create_proxy("call_method", name, (proxy, *args), kwargs)
        return made.value if name in _OF_RANK and isinstance(made, fx.Proxy) else made

    def create_arg(self, a: Any) -> Any:
        """The argument of a node: a proxy says that it is a tensor, and is none."""
        return a.node if issubclass(type(a), fx.Proxy) else super().create_arg(a)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """A layer is a leaf where its forward is that of its kind and its weight is its own."""
        if type(m).forward in _FORWARDS:
            return not _computed_weight(m)
        return super().is_leaf_module(m, module_qualified_name) and not layers.axes(m)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """A leaf is one node, and its hooks run; a module that was made on the way is no part of
        the network, its layers are.
        """
        if self._running or self.is_foreign():
            return forward(*args, **kwargs)
        try:
            name = self.path_of_module(m)
        except NameError:
            return forward(*args, **kwargs)
        hooked = m._forward_hooks or m._forward_pre_hooks
        if not hooked or not self.is_leaf_module(m, name):
            return super().call_module(m, forward, args, kwargs)
        m.forward = lambda *a, **k: self.create_proxy("call_module", name, a, k)
        try:
            return forward(*args, **kwargs)
        finally:
            del m.forward

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """A parameter, or what stands for it."""
        if self._running or issubclass(type(attr_val), fx.Proxy):  # what forward put there
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    # -- Values

    def create_node(self, kind: str, *args: Any, **kwargs: Any) -> fx.Node:
        """A node, with its value."""
        node = super().create_node(kind, *args, **kwargs)
        node.meta[LINE] = _calling_line()
        if kind != "output":
            with self._values_only():
                self.values[node] = self._run(node)
        return node

    @contextlib.contextmanager
    def _values_only(self) -> Iterator[None]:
        self._running = True
        try:
            yield
        finally:
            self._running = False

    def _run(self, node: fx.Node) -> Value:
        if node.op == "placeholder":
            return self._input(str(node.target), node)
        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(self.root)
        args, kwargs = self._arguments(node)
        if node.op == "call_module":
            module = self.root.get_submodule(str(node.target))
            if keeps_shape(module) and len(args) == 1 and not kwargs:
                return args[0]  # much faster than the layer on the meta device
            args, kwargs = _on_meta((args, kwargs))
            return type(module).forward(module, *args, **kwargs)  # its own may stand for a node
        return called(node)(*args, **kwargs)

    def _input(self, name: str, node: fx.Node) -> Value:
        if name.startswith("**"):
            return {}
        if name.startswith("*"):
            rest, self._examples = tuple(self._examples), []
            return rest
        if self._examples:
            return self._examples.pop(0)
        if not node.args:
            raise TypeError(f"it needs an input '{name}' too: give an example of it")
        return node.args[0]

    def _arguments(self, node: fx.Node) -> Value:
        values = fx.node.map_arg((node.args, node.kwargs), lambda other: self.values[other])
        tensors = [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor)]
        if len({tensor.device for tensor in tensors}) > 1:  # a constant meets what is computed
            return _on_meta(values)
        return values


def _on_meta(values: Value) -> Value:
    return pytree.tree_map_only(Tensor, lambda tensor: tensor.to("meta"), values)


_FORWARDS = {
    kind.forward
    for kind in (
        *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d),
        *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
        *(nn.BatchNorm2d, nn.InstanceNorm2d, nn.GroupNorm, nn.PReLU),
    )
}
"""The forwards of layers with channels, which subclasses may have taken over unchanged."""


def _computed_weight(module: nn.Module) -> bool:
    """Is its weight computed: by weight_norm, or a mask of torch.nn.utils.prune?"""
    own = module._parameters
    return any(name not in own and hasattr(module, name) for name in ("weight", "bias"))


def keeps_shape(module: nn.Module) -> bool:
    """True when the output has the shape of the input, so that the layer need not be run."""
    return layers.is_channelwise(module) or type(module).__name__ in operations.IDENTITY


def called(node: fx.Node) -> Callable[..., Value]:
    """The function of a `call_function` or `call_method` node; a method takes `self` first."""
    if node.op == "call_method":
        name = str(node.target)
        return lambda value, *args, **kwargs: getattr(value, name)(*args, **kwargs)
    if not callable(node.target):
        raise TypeError(f"node {node.name} calls {node.target!r}, which is no function")
    return node.target
