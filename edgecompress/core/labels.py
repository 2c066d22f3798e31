"""Shadow execution of a traced network on integer labels: which channel stands at which position of
every activation.

`LabelTracer` runs an `fx.GraphModule` on the meta device and keeps beside every tensor a label
tensor of the same shape. Label 0 is anonymous: a value that belongs to no layer's axis, and
whatever meets it must stay. Three things come out:

    recorded   {(layer, axis): labels (size,)}   which label stands at each position of each axis
    edges      [(n, 2), ...]                     pairs of labels that an operation couples
    freezes    [(labels, reason), ...]           labels that must stay, and why
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from edgecompress.core import layers, operations


def _narrowed(labels: Tensor) -> Tensor:
    """`labels` with every expanded (stride 0) dimension narrowed to 1: the same values, without the
    copies.
    """
    for dim, stride in enumerate(labels.stride()):
        if stride == 0 and labels.shape[dim] > 1:
            labels = labels.narrow(dim, 0, 1)
    return labels


def varies(labels: Tensor, dim: int) -> bool:
    """True when labels differ along `dim`, i.e. when `dim` carries channels."""
    slim = _narrowed(labels)
    return slim.shape[dim] > 1 and bool((slim != slim.narrow(dim, 0, 1)).any())


class LabelTracer:
    """Runs `traced` once on meta tensors and on labels. See the module's docstring for what it
    collects.
    """

    def __init__(self, traced: fx.GraphModule) -> None:
        self.traced = traced
        self.modules = dict(traced.named_modules())
        self.recorded: dict[tuple[str, str], Tensor] = {}
        self.edges: list[Tensor] = []
        self.freezes: list[tuple[Tensor, str]] = [
            (torch.zeros(1, dtype=torch.long), "meets a value that no layer owns")
        ]
        self.output_shapes: dict[str, tuple[int, ...]] = {}
        self.count = 1
        self._values: dict[fx.Node, Any] = {}
        self._labels: dict[fx.Node, Any] = {}

    # -- bookkeeping
    # ---------------------------------------------------------------------------------------------

    def fresh(self, size: int) -> Tensor:
        """`size` labels never seen before, shape (size,)."""
        labels = torch.arange(self.count, self.count + size)
        self.count += size
        return labels

    def couple(self, left: Tensor, right: Tensor) -> None:
        """Labels that stand at the same position of `left` and `right` (broadcastable) are one
        channel.
        """
        left, right = torch.broadcast_tensors(_narrowed(left), _narrowed(right))
        pairs = torch.stack([left.reshape(-1), right.reshape(-1)], 1)
        self.edges.append(pairs[pairs[:, 0] != pairs[:, 1]])

    def freeze(self, labels: Any, reason: str) -> None:
        """Every label in `labels` (a tensor, or tensors in containers) must stay, for `reason`."""
        if isinstance(labels, Tensor):
            self.freezes.append((_narrowed(labels).unique(), reason))
        elif isinstance(labels, (tuple, list)):
            for part in labels:
                self.freeze(part, reason)
        elif isinstance(labels, dict):
            self.freeze(list(labels.values()), reason)

    def record(self, layer: str, axis: str, labels: Tensor) -> Tensor:
        """Note the labels (size,) of an axis; a layer called twice has its labels coupled. Returns
        the first ones.
        """
        known = self.recorded.setdefault((layer, axis), labels)
        if known is not labels:
            self.couple(known, labels)
        return known

    # -- the run
    # ----------------------------------------------------------------------------------------------

    def run(self, example: Tensor) -> None:
        """Execute every node for `example` (N, C, ...), a meta tensor."""
        for node in self.traced.graph.nodes:
            handler: Callable[[fx.Node, Tensor], tuple[Any, Any]] = getattr(self, f"_run_{node.op}")
            self._values[node], self._labels[node] = handler(node, example)

    def _run_placeholder(self, node: fx.Node, example: Tensor) -> tuple[Any, Any]:
        if node.args:  # an optional argument keeps its default
            return node.args[0], None
        size = example.shape[1] if example.dim() > 1 else 1
        labels = self.fresh(size)
        self.freeze(labels, "the network's input")
        shape = [1, size, *[1] * (example.dim() - 2)]
        return example, labels.reshape(shape[: example.dim()]).expand(example.shape)

    def _run_get_attr(self, node: fx.Node, _: Tensor) -> tuple[Any, Any]:
        value: Any = self.traced
        for part in str(node.target).split("."):
            value = getattr(value, part)
        if not isinstance(value, Tensor):
            return value, None
        labels = self._bare_labels(str(node.target), value)
        return value, labels

    def _bare_labels(self, name: str, value: Tensor) -> Tensor:
        """Labels of a bare Parameter or buffer: its one dimension above size 1 is an axis; more
        than one cannot be cut.
        """
        wide = [dim for dim, size in enumerate(value.shape) if size > 1]
        if len(wide) == 1:
            labels = self.record(name, f"dim{wide[0]}", self.fresh(value.shape[wide[0]]))
            shape = [1] * value.dim()
            shape[wide[0]] = -1
            return labels.reshape(shape).expand(value.shape)
        return torch.zeros((), dtype=torch.long).expand(value.shape)

    def _run_call_module(self, node: fx.Node, _: Tensor) -> tuple[Any, Any]:
        module = self.modules[str(node.target)]
        labels, name = self._shadow(node.args), str(node.target)
        if self._keeps_shape(module) and len(node.args) == 1 and not node.kwargs:
            (out,) = self._concrete(
                node.args
            )  # running these on the meta device is slow and says nothing
        else:
            out = module(*self._concrete(node.args), **self._concrete(node.kwargs))
        if layers.is_mixing(module):
            return out, self._mix(name, module, labels[0], out)
        if layers.is_channelwise(module) or isinstance(module, nn.GroupNorm):
            return out, self._through(name, module, labels[0], out)
        return out, self._operate(type(module).__name__, node, labels, out)

    @staticmethod
    def _keeps_shape(module: nn.Module) -> bool:
        return layers.is_channelwise(module) or type(module).__name__ in operations.IDENTITY

    def _run_call_function(self, node: fx.Node, _: Tensor) -> tuple[Any, Any]:
        assert_like = getattr(node.target, "__name__", str(node.target))
        if assert_like in ("_assert", "_log_api_usage_once"):
            return None, None
        out = node.target(*self._concrete(node.args), **self._concrete(node.kwargs))  # type: ignore[operator]
        if node.target is operator.getitem:
            return out, self._getitem(node, out)
        return out, self._operate(assert_like, node, self._shadow(node.args), out)

    def _run_call_method(self, node: fx.Node, _: Tensor) -> tuple[Any, Any]:
        self_value, *rest = self._concrete(node.args)
        out = getattr(self_value, str(node.target))(*rest, **self._concrete(node.kwargs))
        return out, self._operate(str(node.target), node, self._shadow(node.args), out)

    def _run_output(self, node: fx.Node, _: Tensor) -> tuple[Any, Any]:
        labels = self._shadow(node.args)
        self.freeze(labels, "the network's output")
        return self._concrete(node.args), labels

    def _concrete(self, args: Any) -> Any:
        return fx.node.map_arg(args, lambda n: self._values[n])

    def _shadow(self, args: Any) -> Any:
        """Like `_concrete`, with labels in the place of tensors."""
        return fx.node.map_arg(
            args, lambda n: self._values[n] if self._labels[n] is None else self._labels[n]
        )

    # -- layers
    # ----------------------------------------------------------------------------------------------

    def _along(self, labels: Tensor, dim: int, what: str) -> Tensor:
        """Labels (size,) along `dim`; when they vary along another dimension too, they cannot be
        cut.
        """
        slim = _narrowed(labels)
        flat = slim.movedim(dim, 0).reshape(slim.shape[dim], -1)
        if flat.shape[1] > 1 and bool((flat != flat[:, :1]).any()):
            self.freeze(labels, f"{what} reads channels along more than one dimension")
        return flat[:, 0].expand(labels.shape[dim]) if slim.shape[dim] == 1 else flat[:, 0]

    def _mix(self, name: str, module: nn.Module, labels: Tensor, out: Tensor) -> Tensor:
        dim = -1 if isinstance(module, nn.Linear) else 1 - labels.dim() + out.dim()
        channels = self._along(labels, dim, name)
        self.output_shapes[name] = tuple(out.shape)
        in_labels = self.record(name, "in", channels)
        groups = int(getattr(module, "groups", 1))
        size = out.shape[dim]
        if groups > 1 and layers.loses_whole_groups(module):
            # a whole group goes: everything that it reads is coupled to everything that it writes
            out_labels = self.record(name, "out", self._known_or_fresh(name, size))
            lead = out_labels.reshape(groups, -1)[:, :1]
            self.couple(in_labels.reshape(groups, -1), lead)
            self.couple(out_labels.reshape(groups, -1), lead)
        elif groups > 1:
            # every group loses the same positions
            out_labels = self.record(name, "out", self._known_or_fresh(name, size))
            for side in (in_labels, out_labels):
                self.couple(side.reshape(groups, -1), side.reshape(groups, -1)[:1])
        else:
            out_labels = self.record(name, "out", self._known_or_fresh(name, size))
        return self._spread(out_labels, dim, out)

    def _known_or_fresh(self, name: str, size: int) -> Tensor:
        known = self.recorded.get((name, "out"))
        return self.fresh(size) if known is None else known

    def _spread(self, labels: Tensor, dim: int, out: Tensor) -> Tensor:
        """Labels (size,) along `dim` in the shape of `out`."""
        shape = [1] * out.dim()
        shape[dim] = -1
        return labels.reshape(shape).expand(out.shape)

    def _through(self, name: str, module: nn.Module, labels: Tensor, out: Tensor) -> Tensor:
        channels = self._along(labels, 1, name)
        if isinstance(module, nn.PReLU) and module.num_parameters == 1:
            return labels
        self.record(name, "through", channels)
        if isinstance(module, nn.GroupNorm) and module.num_groups < module.num_channels:
            grouped = channels.reshape(module.num_groups, -1)
            if module.num_groups == 1:
                self.freeze(channels, f"{name} normalises across channels")
            self.couple(grouped, grouped[:, :1])
        return labels

    # -- operations
    # ----------------------------------------------------------------------------------------------

    def _operate(self, name: str, node: fx.Node, args: Any, out: Any) -> Any:
        """Labels of `out` for the operation called `name`; `args` are its arguments with labels for
        tensors.
        """
        tensors = [a for a in _flat(args) if isinstance(a, Tensor)] + [
            a for a in _flat(self._shadow(node.kwargs)) if isinstance(a, Tensor)
        ]
        if not isinstance(out, (Tensor, tuple, list)) or isinstance(out, torch.Size) or not tensors:
            return _anonymous(out) if isinstance(out, Tensor) else None
        if not isinstance(out, Tensor):
            if name in operations.SPLITS:
                return self._split(name, node, tensors[0], out)
            if name in operations.MOVES:
                return self._replay(node, out)
            self.freeze(tensors, f"operation {name} with several results")
            return _anonymous(out)
        if name in operations.IDENTITY and len(tensors) == 1:
            return tensors[0].expand(out.shape)
        if name in operations.ELEMENTWISE or (name in ("max", "min") and len(tensors) == 2):
            return self._elementwise(tensors, out)
        if name in operations.SPATIAL:
            return self._spatial(name, tensors[0], out)
        if name in ("cat", "concat", "concatenate"):
            return self._cat(node, args, out)
        if name in operations.MOVES:
            return self._replay(node, out)
        if name in operations.RESHAPES:
            return self._reshape(name, node, tensors[0], out)
        if name in operations.REDUCTIONS:
            return self._reduce(name, node, tensors[0], out)
        if name == "ChannelShuffle":
            return self._shuffle(self.modules[str(node.target)], tensors[0], out)
        self.freeze(tensors, f"operation {name}")
        return _anonymous(out)

    def _elementwise(self, tensors: list[Tensor], out: Tensor) -> Any:
        result = tensors[0].expand(out.shape) if tensors[0].shape == out.shape else None
        for other in tensors if result is None else tensors[1:]:
            result = other.expand(out.shape) if result is None else self._meet(result, other, out)
        return result

    def _meet(self, left: Tensor, right: Tensor, out: Tensor) -> Tensor:
        """Labels of an elementwise operation on two tensors; a value broadcast over channels must
        stay.
        """
        right = right.reshape([1] * (out.dim() - right.dim()) + list(right.shape))
        left = left.reshape([1] * (out.dim() - left.dim()) + list(left.shape))
        for dim in range(out.dim()):
            one, many = (left, right) if left.shape[dim] == 1 else (right, left)
            if one.shape[dim] == 1 and many.shape[dim] > 1 and varies(many, dim):
                self.freeze(one, "broadcast across channels")
                return many.expand(out.shape)
            broadcast = not varies(one, dim) and many.shape[dim] > 1 and varies(many, dim)
            if broadcast and _narrowed(one).shape[dim] == 1 and one.shape[dim] > 1:
                self.freeze(one, "broadcast across channels")
                self.freeze(many, "meets a value broadcast to its width")
                return many.expand(out.shape)
        self.couple(left, right)
        return left.expand(out.shape)

    def _spatial(self, name: str, labels: Tensor, out: Tensor) -> Tensor:
        channels = self._along(labels, 1, name)
        if out.shape[1] != labels.shape[1]:
            self.freeze(labels, f"operation {name} changes the number of channels")
            return _nobody(out)
        return self._spread(channels, 1, out)

    def _cat(self, node: fx.Node, args: Any, out: Tensor) -> Tensor:
        parts = list(args[0])
        dim = self._concrete(
            node.kwargs.get(
                "dim", node.kwargs.get("axis", node.args[1] if len(node.args) > 1 else 0)
            )
        )
        dim = dim % out.dim()
        for other in range(out.dim()):
            if other != dim and all(p.stride(other) == 0 or p.shape[other] == 1 for p in parts):
                parts = [p.narrow(other, 0, 1) for p in parts]
        for other in range(out.dim()):
            if other != dim and parts[0].shape[other] > 1 and any(varies(p, other) for p in parts):
                for part in parts[1:]:  # a cat along space: channels of the parts meet side by side
                    self.couple(part.narrow(dim, 0, 1), parts[0].narrow(dim, 0, 1))
        return torch.cat(parts, dim).expand(out.shape)

    def _replay(self, node: fx.Node, out: Any) -> Any:
        """Execute a data movement on the labels themselves."""
        args, kwargs = self._shadow(node.args), self._shadow(node.kwargs)
        if node.op == "call_module":
            return self.modules[str(node.target)](*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def _reshape(self, name: str, node: fx.Node, labels: Tensor, out: Tensor) -> Tensor:
        """A view: a size written into the code cannot change, so along it channels are coupled, or
        all must stay.
        """
        moved = labels.reshape(out.shape)
        literal = self._literal_sizes(name, node, out)
        carrying = [dim for dim in range(out.dim()) if varies(moved, dim)]
        fixed = [dim for dim in carrying if literal[dim]]
        if fixed and len(fixed) == len(carrying):
            self.freeze(labels, f"a hard-coded {name} to {tuple(out.shape)}")
        else:
            for dim in fixed:
                self.couple(moved, moved.narrow(dim, 0, 1))
        return moved

    def _literal_sizes(self, name: str, node: fx.Node, out: Tensor) -> list[bool]:
        """For each dimension of `out`: is its size a number in the code (neither -1 nor computed
        from a shape)?
        """
        if name == "Unflatten" or name == "unflatten":
            return [True] * out.dim()
        sizes: list[Any] = list(node.args[1:])
        if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)):
            sizes = list(sizes[0])
        if not sizes and "shape" in node.kwargs and isinstance(node.kwargs["shape"], (tuple, list)):
            sizes = list(node.kwargs["shape"])
        if (
            len(sizes) != out.dim()
        ):  # the whole shape comes from another value: it moves with that value
            return [False] * out.dim()
        return [isinstance(size, int) and size != -1 for size in sizes]

    def _split(self, name: str, node: fx.Node, labels: Tensor, out: Any) -> Any:
        parts = self._replay(node, out)
        dim = node.kwargs.get("dim", node.args[2] if len(node.args) > 2 else 0)
        how = (
            node.args[1]
            if len(node.args) > 1
            else next(iter(v for k, v in node.kwargs.items() if k != "dim"), None)
        )
        if not isinstance(dim, int) or not varies(labels, dim):
            return parts
        by_number = name in ("chunk", "tensor_split") and isinstance(how, int)
        if (by_number or isinstance(how, fx.Node)) and len({p.shape[dim] for p in parts}) == 1:
            for part in parts[1:]:
                self.couple(part, parts[0])
        else:
            self.freeze(labels, f"a hard-coded {name} of channels")
        return parts

    def _getitem(self, node: fx.Node, out: Any) -> Any:
        source = node.args[0]
        labels = self._labels[source] if isinstance(source, fx.Node) else None
        if (
            labels is None
            or not isinstance(out, (Tensor, tuple, list))
            or isinstance(out, torch.Size)
        ):
            return None
        if isinstance(labels, (tuple, list)):
            return labels[self._concrete(node.args[1])]
        picked = labels[self._concrete(node.args[1])]
        if _narrowed(picked).unique().numel() != _narrowed(labels).unique().numel():
            self.freeze(labels, "a hard-coded index into channels")
        return picked

    def _reduce(self, name: str, node: fx.Node, labels: Tensor, out: Tensor) -> Any:
        rest = {
            k: v for k, v in self._concrete(node.kwargs).items() if k in ("dim", "keepdim", "axis")
        }
        given = self._concrete(node.args)[1:]
        dims = rest.get("dim", rest.get("axis", given[0] if given else None))
        dims = (
            list(range(labels.dim()))
            if dims is None
            else [dims]
            if isinstance(dims, int)
            else list(dims)
        )
        if any(varies(labels, dim) for dim in dims):
            self.freeze(labels, f"{name} across channels")
            return _anonymous(out)
        keepdim = rest.get(
            "keepdim", given[1] if len(given) > 1 and isinstance(given[1], bool) else False
        )
        return _narrowed(labels).amin(dim=dims, keepdim=bool(keepdim)).expand(out.shape)

    def _shuffle(self, module: nn.Module, labels: Tensor, out: Tensor) -> Tensor:
        groups = int(getattr(module, "groups", 1))
        channels = self._along(labels, 1, "ChannelShuffle").reshape(groups, -1)
        self.couple(channels, channels[:1])
        return self._spread(channels.transpose(0, 1).reshape(-1), 1, out)


def _flat(args: Any) -> list[Any]:
    """`args` with containers opened."""
    if isinstance(args, (tuple, list)):
        return [leaf for part in args for leaf in _flat(part)]
    if isinstance(args, dict):
        return _flat(list(args.values()))
    return [args]


def _nobody(out: Tensor) -> Tensor:
    """Labels 0 in the shape of `out`."""
    return torch.zeros((), dtype=torch.long).expand(out.shape)


def _anonymous(out: Any) -> Any:
    """Labels 0 in the shape of `out`, containers kept."""
    if isinstance(out, Tensor):
        return _nobody(out)
    if isinstance(out, (tuple, list)):
        return (
            type(out)(_anonymous(part) for part in out)
            if not hasattr(out, "_fields")
            else tuple(map(_anonymous, out))
        )
    return None
