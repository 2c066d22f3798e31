"""The label trace: a traced network run once on meta tensors and, next to each, a tensor of labels.

`LabelTracer` visits the nodes of an `fx.GraphModule` in order. For each it computes the value on
the meta device and the labels of that value. Layers with channels of their own are handled here,
all other operations by `core/rules`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable

import torch
from torch import Tensor, fx, nn

from edgecompress.core import layers, operations, rules
from edgecompress.core.ledger import Ledger, anonymous, spread
from edgecompress.core.rules import Argument, Call

INPUT = "the network's input"
OUTPUT = "the network's output"
"""Reasons why the channels of input and output are frozen."""


class LabelTracer:
    """Runs `traced` on meta tensors and on labels; what it finds out is in `ledger`."""

    def __init__(self, traced: fx.GraphModule) -> None:
        self.traced = traced
        self.modules = dict(traced.named_modules())
        self.ledger = Ledger()
        self.output_shapes: dict[str, tuple[int, ...]] = {}
        self._values: dict[fx.Node, Argument] = {}
        self._labels: dict[fx.Node, Argument] = {}

    def run(self, example: Tensor) -> None:
        """Execute every node for `example` (N, C, ...), a meta tensor."""
        for node in self.traced.graph.nodes:
            value, labels = self._execute(node, example)
            self._values[node] = value
            self._labels[node] = labels

    def _execute(self, node: fx.Node, example: Tensor) -> tuple[Argument, Argument]:
        """Value and labels of one node; labels are None where the value is no tensor."""
        if node.op == "placeholder":
            return self._placeholder(node, example)
        if node.op == "get_attr":
            return self._attribute(node)
        if node.op == "output":
            labels = self._with_labels(node.args)
            self.ledger.freeze(labels, OUTPUT)
            return self._with_values(node.args), labels
        if node.op == "call_module":
            return self._call_module(node)
        return self._call_function(node)

    # -- Inputs and bare tensors

    def _placeholder(self, node: fx.Node, example: Tensor) -> tuple[Argument, Argument]:
        if node.args:  # an optional argument keeps its default
            return node.args[0], None
        size = example.shape[1] if example.dim() > 1 else 1
        labels = self.ledger.fresh(size)
        self.ledger.freeze(labels, INPUT)
        shape = [1, size, *[1] * (example.dim() - 2)][: example.dim()]
        return example, labels.reshape(shape).expand(example.shape)

    def _attribute(self, node: fx.Node) -> tuple[Argument, Argument]:
        value = operator.attrgetter(str(node.target))(self.traced)
        if not isinstance(value, Tensor):
            return value, None
        return value, self._bare_labels(str(node.target), value)

    def _bare_labels(self, name: str, value: Tensor) -> Argument:
        """Labels of a bare Parameter or buffer.

        Its one dimension above size 1 is an axis; with more than one it cannot be cut.
        """
        wide = [dim for dim, size in enumerate(value.shape) if size > 1]
        if len(wide) != 1:
            return anonymous(value)
        (dim,) = wide
        labels = self.ledger.record(name, f"dim{dim}", self.ledger.fresh(value.shape[dim]))
        return spread(labels, dim, value)

    # -- Calls

    def _call_module(self, node: fx.Node) -> tuple[Argument, Argument]:
        name = str(node.target)
        module = self.modules[name]
        if _keeps_shape(module) and len(node.args) == 1 and not node.kwargs:
            (out,) = self._with_values(node.args)  # much faster than the layer on the meta device
        else:
            out = module(*self._with_values(node.args), **self._with_values(node.kwargs))

        if layers.is_mixing(module):
            return out, self._mix(name, module, self._with_labels(node.args)[0], out)
        if layers.is_channelwise(module) or isinstance(module, nn.GroupNorm):
            return out, self._through(name, module, self._with_labels(node.args)[0])
        return out, self._apply_rule(type(module).__name__, node, module, out)

    def _call_function(self, node: fx.Node) -> tuple[Argument, Argument]:
        """A function or a method."""
        function = _callable(node)
        name = str(getattr(node.target, "__name__", node.target))
        if name in ("_assert", "_log_api_usage_once"):
            return None, None
        out = function(*self._with_values(node.args), **self._with_values(node.kwargs))
        if node.target is operator.getitem:
            return out, self._index(node, out)
        return out, self._apply_rule(name, node, function, out)

    def _apply_rule(
        self, name: str, node: fx.Node, function: Callable[..., Argument], out: Argument
    ) -> Argument:
        call = Call(
            name,
            node,
            function,
            self._with_values(node.args),
            self._with_values(node.kwargs),
            self._with_labels(node.args),
            self._with_labels(node.kwargs),
            out,
        )
        return rules.apply(self.ledger, call)

    def _index(self, node: fx.Node, out: Argument) -> Argument:
        source = node.args[0]
        labels = self._labels[source] if isinstance(source, fx.Node) else None
        if labels is None or isinstance(out, torch.Size):
            return None
        if not isinstance(out, (Tensor, tuple, list)):
            return None
        position = self._with_values(node.args[1])
        if isinstance(labels, (tuple, list)):
            return labels[position]
        return rules.index(self.ledger, labels, position)

    def _with_values(self, args: Argument) -> Argument:
        """`args` with the values of its nodes."""
        return fx.node.map_arg(args, lambda node: self._values[node])

    def _with_labels(self, args: Argument) -> Argument:
        """`args` with the labels of its nodes; with the value where a node has no labels."""
        return fx.node.map_arg(
            args,
            lambda node: self._values[node] if self._labels[node] is None else self._labels[node],
        )

    # -- Layers

    def _mix(self, name: str, module: nn.Module, labels: Tensor, out: Tensor) -> Tensor:
        """A mixing layer reads its input channels and writes fresh ones."""
        # channels lie last for a Linear, else second; convolutions also take inputs without a batch
        dim = -1 if isinstance(module, nn.Linear) else 1 - labels.dim() + out.dim()
        self.output_shapes[name] = tuple(out.shape)
        inputs = self.ledger.record(name, "in", self.ledger.along(labels, dim, name))
        known = self.ledger.recorded.get((name, "out"))
        fresh = self.ledger.fresh(out.shape[dim]) if known is None else known
        outputs = self.ledger.record(name, "out", fresh)

        groups = int(getattr(module, "groups", 1))
        if groups > 1:
            self._couple_groups(inputs.reshape(groups, -1), outputs.reshape(groups, -1), module)
        return spread(outputs, dim, out)

    def _couple_groups(self, inputs: Tensor, outputs: Tensor, module: nn.Module) -> None:
        """Couplings of a grouped convolution with labels (groups, channels of a group)."""
        if layers.loses_whole_groups(module):
            # all that a group reads goes together with all that it writes
            self.ledger.couple(inputs, outputs[:, :1])
            self.ledger.couple(outputs, outputs[:, :1])
        else:
            # every group loses the same positions
            self.ledger.couple(inputs, inputs[:1])
            self.ledger.couple(outputs, outputs[:1])

    def _through(self, name: str, module: nn.Module, labels: Tensor) -> Tensor:
        """A layer with parameters for each channel keeps the channels that it reads."""
        channels = self.ledger.along(labels, 1, name)
        if isinstance(module, nn.PReLU) and module.num_parameters == 1:
            return labels
        self.ledger.record(name, "through", channels)
        if isinstance(module, nn.GroupNorm) and module.num_groups < module.num_channels:
            if module.num_groups == 1:
                self.ledger.freeze(channels, f"{name} normalises across channels")
            # each normalised group goes as one
            grouped = channels.reshape(module.num_groups, -1)
            self.ledger.couple(grouped, grouped[:, :1])
        return labels


def _keeps_shape(module: nn.Module) -> bool:
    """True when the output has the shape of the input, so that the layer need not be run."""
    return layers.is_channelwise(module) or type(module).__name__ in operations.IDENTITY


def _callable(node: fx.Node) -> Callable[..., Argument]:
    """The function of a `call_function` or `call_method` node; a method takes `self` first."""
    if node.op == "call_method":
        name = str(node.target)
        return lambda value, *args, **kwargs: getattr(value, name)(*args, **kwargs)
    if not callable(node.target):
        raise TypeError(f"node {node.name} calls {node.target!r}, which is no function")
    return node.target
