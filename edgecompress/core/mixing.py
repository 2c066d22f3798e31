"""Rules for operations that mix values of activations: products, attention, normalisations. Where
they mix channels these are frozen; the channels of other dimensions, such as whole heads, are kept.
"""

from __future__ import annotations

from torch import Tensor, fx

from edgecompress.core.calls import Argument, Call, unknown
from edgecompress.core.ledger import Ledger, anonymous, spread, varies
from edgecompress.core.numbers import Number, follows, is_number

CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")


def matmul(ledger: Ledger, call: Call, out: Tensor) -> Argument:
    """A product of two activations, (..., i, d) and (..., d, j): each of the leading dimensions is
    computed by itself, the products are summed over d. `out` is (..., i, j).
    """
    tensors = call.label_tensors
    if len(tensors) != 2 or min(tensor.dim() for tensor in tensors) < 2:
        return unknown(ledger, call, out)
    left, right = tensors
    if varies(left, left.dim() - 1) or varies(right, right.dim() - 2):
        ledger.freeze(tensors, f"{call.name} sums over channels")
        return anonymous(out)
    left, right = left.narrow(-1, 0, 1), right.narrow(-2, 0, 1)
    if varies(left, left.dim() - 2) and varies(right, right.dim() - 1):
        ledger.freeze(tensors, f"{call.name} of channels with channels")
        return anonymous(out)
    wide = left if varies(left, left.dim() - 2) else right
    other = right if wide is left else left
    ledger.couple(wide, other.narrow(-1, 0, 1).narrow(-2, 0, 1))
    ledger.multiply(wide, out.numel() * tensors[0].shape[-1])
    return wide.expand(out.shape)


def attention(ledger: Ledger, call: Call, out: Tensor) -> Argument:
    """`scaled_dot_product_attention`: whole heads, a leading dimension, are computed each by
    itself. `out` is (..., queries, d).
    """
    given, masks = call.label_tensors[:3], call.label_tensors[3:]
    if len(given) < 3 or any(mask.dim() > 2 and mask.shape[-3] > 1 for mask in masks):
        return unknown(ledger, call, out)
    query, key, value = given
    if len({part.shape[:-2] for part in given}) > 1:  # several heads of queries for one of keys
        return unknown(ledger, call, out)
    if varies(query, query.dim() - 1) or varies(key, key.dim() - 1):
        return unknown(ledger, call, out)
    for part in (query, key):
        if varies(part, part.dim() - 2):
            return unknown(ledger, call, out)
        ledger.couple(value, part.narrow(-1, 0, 1).narrow(-2, 0, 1))
    pairs = query.shape[:-1].numel() * key.shape[-2]
    ledger.multiply(value.narrow(-2, 0, 1), pairs * (query.shape[-1] + value.shape[-1]))
    return value.narrow(-2, 0, 1).expand(out.shape)


def depthwise(ledger: Ledger, call: Call, out: Tensor) -> Argument:
    """A convolution by a bare tensor of filters, one for each channel, as blur pools have them:
    (C, 1, ...), or a single filter that is expanded to the width of the input. `out` is
    (N, C, ...).
    """
    weight, groups = call.given(1, "weight"), call.given(6, "groups")
    labels = call.label_tensors[0]
    filters = call.args[1] if len(call.args) > 1 else call.kwargs["weight"]
    if call.given(2, "bias") is not None or not isinstance(weight, fx.Node):
        return unknown(ledger, call, out)
    width = labels.shape[1]
    if labels.dim() != out.dim() or tuple(filters.shape[:2]) != (width, 1):
        return unknown(ledger, call, out)
    channels = ledger.along(labels, 1, call.name)
    sizes = [groups]
    if weight.op == "get_attr" and _is_bare(ledger, str(weight.target)) and _only_filters(weight):
        ledger.record(str(weight.target), "dim0", channels)
    elif _expands_one(weight):
        sizes.append(weight.args[1])
    else:
        return unknown(ledger, call, out)
    for size in sizes:
        follows_cut = isinstance(size, Number) and follows(ledger, size, channels)
        if not (isinstance(size, fx.Node) or follows_cut):
            return unknown(ledger, call, out)
    ledger.multiply(channels, out.numel() * filters[0].numel())
    return spread(channels, 1, out)


def _is_bare(ledger: Ledger, name: str) -> bool:
    """Is `name` a parameter or buffer that is no layer's?"""
    owner = name.rpartition(".")[0]
    made = name.startswith("_tensor_constant")  # by the code itself, at each call
    taken = (layer == owner and not is_number(axis) for layer, axis in ledger.recorded)
    return not made and not any(taken)


def _only_filters(node: fx.Node) -> bool:
    """Is the tensor of `node` read as the weight of convolutions only, everywhere?"""
    reads = [
        each for each in node.graph.nodes if each.op == "get_attr" and each.target == node.target
    ]
    return all(
        str(getattr(user.target, "__name__", "")) in CONVOLUTIONS
        and user.args[:1] != (read,)
        and read in (*user.args[1:2], user.kwargs.get("weight"))
        for read in reads
        for user in read.users
    )


def _expands_one(node: fx.Node) -> bool:
    """Is it one filter, expanded to so many?"""
    source = node.args[0] if node.args else None
    return (
        str(node.target) in ("expand", "repeat")
        and isinstance(source, fx.Node)
        and source.op == "get_attr"
        and len(node.args) > 1
    )


def along_others(ledger: Ledger, call: Call, out: Tensor) -> Argument:
    """A softmax or a normalisation keeps the channels of the dimensions that it does not go
    over. `out` (...) has the shape of its input.
    """
    labels = call.label_tensors[0]
    if any(varies(labels, dim) for dim in _mixed_dims(call, labels.dim())):
        return unknown(ledger, call, out)
    ledger.freeze(call.label_tensors[1:], f"parameters of {call.name}")
    return labels


def _mixed_dims(call: Call, rank: int) -> list[int]:
    """The dimensions whose values an operation mixes, by its name; all where that is not known."""
    module = call.function
    shape = getattr(module, "normalized_shape", None)
    if call.name in ("layer_norm", "rms_norm"):
        shape = call.args[1] if len(call.args) > 1 else call.kwargs.get("normalized_shape")
    if shape is not None:
        return list(range(rank - len(shape), rank))
    place = {"normalize": 2}.get(call.name, 1)
    positional = call.args[place] if len(call.args) > place else None
    dim = getattr(module, "dim", call.kwargs.get("dim", positional))
    if dim is None and call.name == "normalize":
        dim = 1
    return [dim % rank] if isinstance(dim, int) else list(range(rank))
