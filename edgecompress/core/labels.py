"""The label trace: next to each value of a traced network a tensor of labels.

`LabelTracer` visits the nodes of a `core/concrete` trace in order, and finds the labels of each
value. Layers with channels of their own are handled here, whether they are called as modules or
their tensors are given to a function; all other operations by `core/rules`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.instancenorm import _InstanceNorm

from edgecompress.core import layers, rules
from edgecompress.core.calls import Argument, Call
from edgecompress.core.concrete import LINE, Traced, called
from edgecompress.core.ledger import Axis, Ledger, anonymous, flat, spread

INPUT = "the network's input"
OUTPUT = "the network's output"
"""Reasons why the channels of input and output are frozen."""
COMPUTED_INDEX = "an index that is computed"


class LabelTracer:
    """Finds the labels of all values of `traced`; what it finds out is in `ledger`."""

    def __init__(self, traced: Traced) -> None:
        self.modules = dict(traced.root.named_modules())
        self.ledger = Ledger()
        self.output_shapes: dict[str, tuple[int, ...]] = {}
        self._graph = traced.graph
        self._shared = shared_tensors(traced.root)
        self._values = traced.values
        self._labels: dict[fx.Node, Argument] = {}

    def run(self) -> None:
        """Visit every node."""
        for node in self._graph.nodes:
            self.ledger.line = str(node.meta.get(LINE, ""))
            self._labels[node] = self._labelled(node)
        self.ledger.line = ""
        for names in self._shared:
            self._couple_shared(names)

    def _labelled(self, node: fx.Node) -> Argument:
        """The labels of one node; None where its value is no tensor."""
        if node.op == "placeholder":
            return self._placeholder(self._values[node])
        if node.op == "get_attr":
            return self._attribute(node)
        if node.op == "output":
            labels = self._with_labels(node.args)
            self.ledger.freeze(labels, OUTPUT)
            return labels
        if node.op == "call_module":
            return self._call_module(node)
        return self._call_function(node)

    # -- Inputs and bare tensors

    def _placeholder(self, value: Argument) -> Argument:
        if isinstance(value, tuple):
            return tuple(self._placeholder(part) for part in value)
        if not isinstance(value, Tensor):
            return None
        size = value.shape[1] if value.dim() > 1 else 1
        labels = self.ledger.fresh(size)
        self.ledger.freeze(labels, INPUT)
        shape = [1, size, *[1] * (value.dim() - 2)][: value.dim()]
        return labels.reshape(shape).expand(value.shape)

    def _attribute(self, node: fx.Node) -> Argument:
        """Labels of a bare tensor, read outside the function of its layer."""
        value, name = self._values[node], str(node.target)
        if not isinstance(value, Tensor) or self._is_of_a_call(node):
            return None
        owner, _, own = name.rpartition(".")
        module = self.modules.get(owner)
        if module is not None and layers.axes(module):
            return self._layer_tensor(owner, module, own, value)
        return self._bare_labels(name, value)

    def _bare_labels(self, name: str, value: Tensor) -> Argument:
        """Labels of a bare Parameter or buffer.

        Its one dimension above size 1 is an axis; with more than one it cannot be cut, and integers
        are indices.
        """
        wide = [dim for dim, size in enumerate(value.shape) if size > 1]
        made = name.startswith("_tensor_constant")  # by the code itself, at each call
        if len(wide) != 1 or made or not value.is_floating_point():
            return anonymous(value)
        (dim,) = wide
        labels = self.ledger.record(name, f"dim{dim}", self.ledger.fresh(value.shape[dim]))
        return spread(labels, dim, value)

    def _layer_tensor(self, owner: str, module: nn.Module, own: str, value: Tensor) -> Argument:
        """Labels of a layer's own tensor: a vector has the layer's channels, a weight that is read
        as it is holds its layer as it is.
        """
        axis = "out" if layers.is_mixing(module) else "through"
        if value.dim() == 1 and len(value) == layers.axis_size(module, axis):
            return self.ledger.record(owner, axis, self.ledger.fresh(len(value)))
        for axis in layers.axes(module):
            labels = self.ledger.fresh(layers.axis_size(module, axis))
            self.ledger.freeze(labels, f"the weight of {owner} is read in forward")
            self.ledger.record(owner, axis, labels)
        return anonymous(value)

    def _couple_shared(self, names: list[str]) -> None:
        """One tensor under several names: the axes of its layers are the same, dimension by
        dimension. Where they cannot be, they stay.
        """
        axes = [axes for name in names if (axes := self._axes_of(name)) is not None]
        first = axes[0] if axes else ()
        for other in axes[1:]:
            for one, two in zip(first, other, strict=False):
                left, right = (self.ledger.recorded.get(axis) for axis in (one, two))
                if left is None or right is None:
                    continue
                if len(left) == len(right):
                    self.ledger.couple(left, right)
                else:
                    self.ledger.freeze([left, right], f"{' and '.join(names)} share a tensor")

    def _axes_of(self, name: str) -> list[Axis] | None:
        """The axes in the dimensions of a tensor called `name`; None where it is no layer's."""
        owner, _, own = name.rpartition(".")
        module = self.modules.get(owner)
        if module is None or not layers.axes(module):
            bare = (name, "dim0")
            return [bare] if bare in self.ledger.recorded else None
        if not layers.is_mixing(module):
            return [(owner, "through")]
        return (
            [(owner, axis) for axis in layers.weight_axes(module)]
            if own == "weight"
            else [(owner, "out")]
        )

    # -- Calls

    def _call_module(self, node: fx.Node) -> Argument:
        name = str(node.target)
        module, out = self.modules[name], self._values[node]
        if layers.is_mixing(module):
            return self._mix(name, module, self._with_labels(node.args)[0], out)
        if layers.is_channelwise(module) or isinstance(module, nn.GroupNorm):
            return self._through(name, module, self._with_labels(node.args)[0])
        return self._apply_rule(type(module).__name__, node, module)

    def _call_function(self, node: fx.Node) -> Argument:
        """A function or a method."""
        name = str(getattr(node.target, "__name__", node.target))
        out = self._values[node]
        if node.target is operator.getitem:
            return self._index(node, out)
        if node.target is operator.setitem:
            return self._assign(node)
        layer = self._layer_of(node)
        if layer is not None:
            module, labels = self.modules[layer], self._labels[node.args[0]]  # type: ignore[index]
            if layers.is_mixing(module):
                return self._mix(layer, module, labels, out)
            return self._through(layer, module, labels)
        return self._apply_rule(name, node, called(node))

    def _layer_of(self, node: fx.Node) -> str | None:
        """The layer that a function computes: its tensors are those of one layer of its kind."""
        name = str(getattr(node.target, "__name__", node.target))
        kinds = FUNCTIONS.get(name)
        if kinds is None or not node.args or not isinstance(node.args[0], fx.Node):
            return None
        given = [*node.args[1:], *node.kwargs.values()]
        read = [part for part in given if isinstance(part, fx.Node) and part.op == "get_attr"]
        owners = {str(part.target).rpartition(".")[0] for part in read}
        if len(owners) != 1 or not isinstance(self._values[node.args[0]], Tensor):
            return None
        (owner,) = owners
        module = self.modules.get(owner)
        return owner if isinstance(module, kinds) and self._computes(node, name, module) else None

    def _computes(self, node: fx.Node, name: str, module: nn.Module) -> bool:
        """Is the weight in its place, and are the groups those of the layer?"""
        weight = node.kwargs.get("weight")
        if weight is None and len(node.args) > 1:
            place = 3 if name in ("batch_norm", "instance_norm") else 1
            weight = node.args[place] if len(node.args) > place else None
        if not layers.is_mixing(module):
            return True
        if not isinstance(weight, fx.Node) or weight.op != "get_attr":
            return False
        if not str(weight.target).endswith("weight"):
            return False
        given = node.args[6] if len(node.args) > 6 else node.kwargs.get("groups", 1)
        return bool(self._with_values(given) == int(getattr(module, "groups", 1)))

    def _is_of_a_call(self, node: fx.Node) -> bool:
        """Is it read by functions of its layer only?"""
        owner = str(node.target).rpartition(".")[0]
        return bool(node.users) and all(
            user.op == "call_function" and self._layer_of(user) == owner for user in node.users
        )

    def _apply_rule(self, name: str, node: fx.Node, function: Callable[..., Argument]) -> Argument:
        call = Call(
            name,
            node,
            function,
            self._with_values(node.args),
            self._with_values(node.kwargs),
            self._with_labels(node.args),
            self._with_labels(node.kwargs),
            self._values[node],
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
        if _is_computed(position):
            self.ledger.freeze(labels, COMPUTED_INDEX)
            return anonymous(out)
        return rules.index(self.ledger, labels, position)

    def _assign(self, node: fx.Node) -> None:
        """`value[position] = other` keeps the channels of `value`, and couples those of `other`."""
        target, position, other = node.args
        labels = self._labels[target]  # type: ignore[index]
        if not isinstance(labels, Tensor):
            return
        places = self._with_values(position)
        if _is_computed(places):
            self.ledger.freeze([labels, self._with_labels([other])], COMPUTED_INDEX)
            return
        into = rules.index(self.ledger, labels, places)
        written = self._labels.get(other) if isinstance(other, fx.Node) else None
        if isinstance(written, Tensor):
            rules.meet(self.ledger, into, written.expand(into.shape), into)

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


_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
FUNCTIONS: dict[str, tuple[type[nn.Module], ...]] = {
    "linear": (nn.Linear,),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _CONVOLUTIONS),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _TRANSPOSED),
    "batch_norm": (layers.BatchNorm,),
    "instance_norm": (_InstanceNorm,),
    "group_norm": (nn.GroupNorm,),
    "prelu": (nn.PReLU,),
}
"""Kinds of layers that each function computes, given their tensors."""


def _is_computed(position: Argument) -> bool:
    """Does an index hold a tensor of which no values are known?"""
    return any(isinstance(part, Tensor) and part.is_meta for part in flat(position))


def shared_tensors(root: nn.Module) -> list[list[str]]:
    """The names of each tensor that has several."""
    names: dict[int, list[str]] = {}
    for named in (root.named_parameters, root.named_buffers):
        for name, tensor in named(remove_duplicate=False):
            names.setdefault(id(tensor), []).append(name)
    return [aliases for aliases in names.values() if len(aliases) > 1]
