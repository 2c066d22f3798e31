"""What each operation does to labels: one rule per kind of operation in `core/operations`.

A rule reads the labels of an operation's arguments, enters into the ledger what the operation
couples or freezes, and returns the labels of its output. An operation without a rule freezes what
it reads.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, fx

from edgecompress.core import mixing, operations
from edgecompress.core.calls import Argument, Call, Rule, unknown
from edgecompress.core.ledger import Ledger, anonymous, narrowed, spread, varies
from edgecompress.core.numbers import Number, follows


def apply(ledger: Ledger, call: Call) -> Argument:
    """The labels of the output of `call`: a tensor, tensors in containers, or None for no
    tensor.
    """
    out, tensors = call.out, call.label_tensors
    if not isinstance(out, (Tensor, tuple, list)) or isinstance(out, torch.Size) or not tensors:
        return anonymous(out) if isinstance(out, Tensor) else None
    if not isinstance(out, Tensor):
        return _several_results(ledger, call)
    return _rule_for(call)(ledger, call, out)


def _several_results(ledger: Ledger, call: Call) -> Argument:
    if call.name in operations.SPLITS:
        return _split(ledger, call)
    if call.name in operations.MOVES:
        return call.replay()
    ledger.freeze(call.label_tensors, f"operation {call.name} with several results")
    return anonymous(call.out)


def _rule_for(call: Call) -> Rule:
    count = len(call.label_tensors)
    if call.name in operations.IDENTITY and count == 1:
        return _identity
    if call.name in ("max", "min") and count == 2:
        return _elementwise
    return RULES.get(call.name, unknown)


def _identity(ledger: Ledger, call: Call, out: Tensor) -> Tensor:
    return call.label_tensors[0].expand(out.shape)


# -- Operations on values


def _elementwise(ledger: Ledger, call: Call, out: Tensor) -> Tensor:
    result, *rest = call.label_tensors
    for labels in rest:
        result = meet(ledger, result, labels, out)
    return result.expand(out.shape)


def meet(ledger: Ledger, left: Tensor, right: Tensor, out: Tensor) -> Tensor:
    """Labels, in the shape of `out` (...), of an elementwise operation on two tensors, whose labels
    `left` and `right` are broadcastable to it.

    A value that is broadcast over channels belongs to all of them, so it must stay.
    """
    left, right = _with_leading_dims(left, out), _with_leading_dims(right, out)
    for dim in range(out.dim()):
        one, many = (left, right) if left.shape[dim] == 1 else (right, left)
        if not varies(many, dim):
            continue
        if one.shape[dim] == 1:
            ledger.freeze(one, "broadcast across channels")
            return many.expand(out.shape)
        if narrowed(one).shape[dim] == 1:
            # broadcast earlier, by an expand to a size that does not follow a cut
            ledger.freeze(one, "broadcast across channels")
            ledger.freeze(many, "meets a value broadcast to its width")
            return many.expand(out.shape)
    ledger.couple(left, right)
    return left.expand(out.shape)


def _with_leading_dims(labels: Tensor, out: Tensor) -> Tensor:
    """`labels` with the dimensions of size 1 in front that broadcasting to `out` adds."""
    return labels.reshape([1] * (out.dim() - labels.dim()) + list(labels.shape))


def _spatial(ledger: Ledger, call: Call, out: Tensor) -> Argument:
    labels = call.label_tensors[0]
    channels = ledger.along(labels, 1, call.name)
    if out.shape[1] != labels.shape[1] or _pads_channels(call, out):
        ledger.freeze(labels, f"operation {call.name} changes the number of channels")
        return anonymous(out)
    return spread(channels, 1, out)


def _pads_channels(call: Call, out: Tensor) -> bool:
    """Does a pad reach the dimension of channels? Its numbers begin with the last dimension."""
    if call.name != "pad":
        return False
    amounts = list(call.args[1] if len(call.args) > 1 else call.kwargs.get("pad", ()))
    return any(int(amount) != 0 for amount in amounts[2 * (out.dim() - 2) :])


def _reduce(ledger: Ledger, call: Call, out: Tensor) -> Argument:
    """A reduction over height and width keeps the channels; one over channels freezes them."""
    labels = call.label_tensors[0]
    dims = _reduced_dims(call, labels.dim())
    if any(varies(labels, dim) for dim in dims):
        ledger.freeze(labels, f"{call.name} across channels")
        return anonymous(out)
    # along the reduced dimensions all labels are equal: the smallest is any of them
    reduced = narrowed(labels).amin(dim=dims, keepdim=_keeps_dims(call))
    return reduced.expand(out.shape)


_PLACES = {"norm": (2, 3), "var": (1, 3), "std": (1, 3)}
"""Positions of the dimensions and of keepdim, where they are not the second and the third."""


def _reduced_dims(call: Call, rank: int) -> list[int]:
    place, _ = _PLACES.get(call.name, (1, 2))
    positional = call.args[place] if len(call.args) > place else None
    if isinstance(positional, bool):
        positional = None
    dims = call.kwargs.get("dim", call.kwargs.get("axis", positional))
    if dims is None:
        return list(range(rank))
    return [dims] if isinstance(dims, int) else list(dims)


def _keeps_dims(call: Call) -> bool:
    _, place = _PLACES.get(call.name, (1, 2))
    positional = call.args[place] if len(call.args) > place else False
    default = positional if isinstance(positional, bool) else False
    return bool(call.kwargs.get("keepdim", default))


# -- Operations that move data


def _move(ledger: Ledger, call: Call, out: Tensor) -> Argument:
    return call.replay()


def _roll(ledger: Ledger, call: Call, out: Tensor) -> Argument:
    """A roll of channels by a number in the code is another one when there are fewer."""
    labels = call.label_tensors[0]
    dims = call.kwargs.get("dims", call.args[2] if len(call.args) > 2 else None)
    rolled = range(out.dim()) if dims is None else [dims] if isinstance(dims, int) else dims
    if any(varies(labels, dim) for dim in rolled):
        ledger.freeze(labels, "a hard-coded roll of channels")
    return call.replay()


def _cat(ledger: Ledger, call: Call, out: Tensor) -> Tensor:
    by_keyword = call.label_kwargs.get("tensors", ())
    parts: list[Tensor] = list(call.labels[0] if call.labels else by_keyword)
    positional = call.args[1] if len(call.args) > 1 else 0
    dim = call.kwargs.get("dim", call.kwargs.get("axis", positional)) % out.dim()
    across = [place for place in range(out.dim()) if place != dim]

    for place in across:
        if all(part.stride(place) == 0 or part.shape[place] == 1 for part in parts):
            parts = [part.narrow(place, 0, 1) for part in parts]

    for place in across:
        if parts[0].shape[place] > 1 and any(varies(part, place) for part in parts):
            # a cat along height or width: channel c of all parts is channel c of the result
            for part in parts[1:]:
                ledger.couple(part.narrow(dim, 0, 1), parts[0].narrow(dim, 0, 1))

    return torch.cat(parts, dim).expand(out.shape)


def _reshape(ledger: Ledger, call: Call, out: Tensor) -> Tensor:
    """A size that is a number in the code cannot follow a cut.

    Where the channels also extend along a dimension whose size can follow, those along the fixed
    one are coupled; else all must stay.
    """
    labels = call.label_tensors[0]
    moved = labels.reshape(out.shape)
    sizes = _sizes_in_code(call, out)
    carrying = [dim for dim in range(out.dim()) if varies(moved, dim)]
    fixed = [dim for dim in carrying if sizes[dim] is not None]
    if fixed and len(fixed) == len(carrying):
        free = next((dim for dim in fixed if isinstance(sizes[dim], Number)), None)
        if free is None:
            ledger.freeze(labels, f"a hard-coded {call.name} to {tuple(out.shape)}")
            return moved
        fixed.remove(free)
        moved = _as_one(ledger, moved, fixed)
        channels = ledger.along(moved, free, call.name)
        if not follows(ledger, cast(Number, sizes[free]), channels):
            ledger.freeze(labels, f"a hard-coded {call.name} to {tuple(out.shape)}")
        return moved
    return _as_one(ledger, moved, fixed)


def _as_one(ledger: Ledger, labels: Tensor, dims: list[int]) -> Tensor:
    """`labels` with those along each of `dims` coupled: one of them stands for all."""
    for dim in dims:
        first = labels.narrow(dim, 0, 1)
        ledger.couple(labels, first)
        labels = first.expand(labels.shape)
    return labels


def _sizes_in_code(call: Call, out: Tensor) -> list[int | None]:
    """For each dimension of `out` its size where that is a number in the code, neither -1 nor
    computed from a shape.
    """
    if call.name in ("Unflatten", "unflatten"):
        return list(out.shape)
    sizes = list(call.node.args[1:])
    if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)):
        sizes = list(sizes[0])
    in_kwargs = call.node.kwargs.get("shape")
    if not sizes and isinstance(in_kwargs, (tuple, list)):
        sizes = list(in_kwargs)
    if len(sizes) != out.dim():
        return [None] * out.dim()  # the complete shape is computed from that of another tensor
    return [size if isinstance(size, int) and size != -1 else None for size in sizes]


def _split(ledger: Ledger, call: Call) -> Argument:
    """A split into equal parts can follow a cut when the code fixes their number, not their
    size.
    """
    labels = call.label_tensors[0]
    parts = call.replay()
    dim = call.node.kwargs.get("dim", call.written(2, 0))
    if not isinstance(dim, int) or not varies(labels, dim):
        return parts

    by_keyword = [value for key, value in call.node.kwargs.items() if key != "dim"]
    sections = call.written(1, by_keyword[0] if by_keyword else None)
    reason = f"a hard-coded {call.name} of channels"
    if isinstance(sections, (list, tuple)) and len(sections) == len(parts):
        for part, size in zip(parts, sections, strict=True):
            if not isinstance(size, fx.Node):
                _sized(ledger, part, dim, size, reason)
        return parts
    fixes_number = call.name in ("chunk", "tensor_split") and isinstance(sections, int)
    follows_cut = fixes_number or isinstance(sections, fx.Node)
    if len({part.shape[dim] for part in parts}) > 1:
        ledger.freeze(labels, reason)
        return parts
    if not follows_cut:
        _sized(ledger, parts[0], dim, sections, reason)
    for part in parts[1:]:
        ledger.couple(part, parts[0])
    return parts


def _sized(ledger: Ledger, labels: Tensor, dim: int, size: Argument, reason: str) -> None:
    """The code gives the `size` of `labels` along `dim`: an attribute follows a cut, another number
    freezes them, for `reason`.
    """
    if not varies(labels, dim):
        return
    if not isinstance(size, Number) or not follows(ledger, size, ledger.along(labels, dim, reason)):
        ledger.freeze(labels, reason)


def index(ledger: Ledger, labels: Tensor, position: Argument) -> Tensor:
    """`labels[position]` of `labels` (...); channels that an index leaves out, or reads by their
    numbers, cannot follow a cut.
    """
    picked = labels[position]
    if _bounded(ledger, labels, position):
        return picked
    by_number = any(varies(labels, dim) for dim in _listed_dims(position, labels.dim()))
    left_out = narrowed(picked).unique().numel() != narrowed(labels).unique().numel()
    if by_number or left_out:
        ledger.freeze(labels, "a hard-coded index into channels")
    return picked


def _bounded(ledger: Ledger, labels: Tensor, position: Argument) -> bool:
    """Enter the bounds of slices of channels, `x[:, : self.width]`: true where each is an attribute
    that follows a cut.
    """
    parts = list(position) if isinstance(position, tuple) else [position]
    if any(part is Ellipsis for part in parts):
        place = next(n for n, part in enumerate(parts) if part is Ellipsis)
        parts[place : place + 1] = [slice(None)] * (labels.dim() - len(parts) + 1)
    if not all(isinstance(part, slice) for part in parts):
        return False
    followed = False
    for dim, part in enumerate(parts):
        if not varies(labels, dim) or part == slice(None):
            continue
        bounds = [bound for bound in (part.start, part.stop) if bound is not None and bound != 0]
        if part.step not in (None, 1) or not all(isinstance(bound, Number) for bound in bounds):
            return False
        if any(int(bound) > labels.shape[dim] for bound in bounds):
            return False
        for bound in bounds:
            channels = ledger.along(labels.narrow(dim, 0, int(bound)), dim, "a slice")
            if not follows(ledger, bound, channels):
                return False
        followed = True
    return followed


def _listed_dims(position: Argument, rank: int) -> list[int]:
    """The dimensions of which `position` gives a list of places: a list, or a tensor."""
    parts = list(position) if isinstance(position, tuple) else [position]
    parts = [part for part in parts if part is not None]
    if Ellipsis in [part for part in parts if not isinstance(part, (list, Tensor))]:
        place = next(n for n, part in enumerate(parts) if part is Ellipsis)
        parts[place : place + 1] = [slice(None)] * (rank - len(parts) + 1)
    return [dim for dim, part in enumerate(parts) if isinstance(part, (list, Tensor))]


def _shuffle(ledger: Ledger, call: Call, out: Tensor) -> Tensor:
    """`nn.ChannelShuffle`: all groups must lose the same positions."""
    groups = int(getattr(call.function, "groups", 1))
    channels = ledger.along(call.label_tensors[0], 1, "ChannelShuffle").reshape(groups, -1)
    ledger.couple(channels, channels[:1])
    return spread(channels.transpose(0, 1).reshape(-1), 1, out)


RULES: dict[str, Rule] = {
    **dict.fromkeys(operations.ELEMENTWISE, _elementwise),
    **dict.fromkeys(operations.SPATIAL, _spatial),
    **dict.fromkeys(operations.MOVES, _move),
    **dict.fromkeys(operations.RESHAPES, _reshape),
    **dict.fromkeys(operations.REDUCTIONS, _reduce),
    **dict.fromkeys(("cat", "concat", "concatenate"), _cat),
    "ChannelShuffle": _shuffle,
    "roll": _roll,
    **dict.fromkeys(("matmul", "__matmul__", "bmm"), mixing.matmul),
    **dict.fromkeys(mixing.CONVOLUTIONS, mixing.depthwise),
    "scaled_dot_product_attention": mixing.attention,
    **dict.fromkeys(operations.ALONG_OTHERS, mixing.along_others),
}
