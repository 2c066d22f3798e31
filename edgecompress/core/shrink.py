"""Build the smaller network that keep masks describe, `shrink(model, keep)`, and its counterpart of
the original size, `masked(model, keep)`.

Law 3: in eval mode `masked(model, keep)(x) == shrink(model, keep)(x)`. A channel is gone exactly
when every consumer reads zero in its place.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from edgecompress.core import layers, numbers
from edgecompress.core.graph import ChannelGroup, consumers
from edgecompress.core.symbolic import real_copy
from edgecompress.errors import UsageError

Keep = Mapping[ChannelGroup, Tensor]
"""Keep masks: for each group a bool tensor (C,), true where the channel stays. A group that is
absent keeps all channels.
"""


def check_keep(keep: Keep) -> None:
    """Raises `UsageError` for a mask of the wrong shape or type, a group left empty, or a cut in a
    frozen one.
    """
    for group, mask in keep.items():
        if mask.dtype != torch.bool or tuple(mask.shape) != (group.size,):
            raise UsageError(
                f"keep mask of group '{group.name}' is {mask.dtype} {tuple(mask.shape)}: give "
                f"torch.bool ({group.size},)"
            )
        if not mask.any():
            raise UsageError(
                f"keep mask of group '{group.name}' drops all {group.size} channels: keep at "
                "least 1"
            )
        if group.frozen is not None and not mask.all():
            raise UsageError(
                f"group '{group.name}' is frozen ({group.frozen}): drop none of its channels"
            )


def kept_positions(model: nn.Module, keep: Keep) -> dict[str, dict[str, Tensor]]:
    """`{layer: {axis: bool (size,)}}`: the positions that stay, for each axis that is cut.

    Raises `UsageError` when a group was traced on another model.
    """
    kept: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for group, mask in keep.items():
        if mask.all():
            continue
        for member in group.members:
            axes = kept[member.layer]
            if member.axis not in axes:
                size = _size(find(model, member.layer), member.axis)
                axes[member.axis] = torch.ones(size, dtype=torch.bool)
            dropped = member.index[~mask.cpu()].reshape(-1)
            if dropped.numel() and int(dropped.max()) >= len(axes[member.axis]):
                raise UsageError(
                    f"group '{group.name}' was traced on another model: trace this one and "
                    "choose again"
                )
            axes[member.axis][dropped] = False
    return dict(kept)


def _size(layer: nn.Module | Tensor, axis: str) -> int:
    if isinstance(layer, Tensor):
        return layer.shape[layers.axis_dim(axis)]
    return layers.axis_size(layer, axis)


def shrink(model: nn.Module, keep: Keep) -> nn.Module:
    """A new model of the same class with only the channels that `keep` keeps; `model` is unchanged.

    The result shares no memory with `model`. Raises `UsageError` as `check_keep` does.
    """
    check_keep(keep)
    changed = {
        name: layers.cut(find(model, name), axes)
        for name, axes in kept_positions(model, keep).items()
    }
    return rebuilt(model, changed)


def rebuilt(model: nn.Module, changed: Mapping[str, layers.Resized]) -> nn.Module:
    """A copy of `model` in which the layers `changed`, by name, have new tensors and attributes.

    `copy.deepcopy` is given the new tensors as the copies of the old ones, so parameters that
    layers share stay shared.
    """
    memo: dict[int, object] = {}
    for name, resized in changed.items():
        layer = find(model, name)
        for tensor_name, tensor in resized.tensors.items():
            old = layer if isinstance(layer, Tensor) else getattr(layer, tensor_name)
            memo[id(old)] = (
                nn.Parameter(tensor, old.requires_grad) if isinstance(old, nn.Parameter) else tensor
            )
    copied = real_copy(model, memo)
    for name, resized in changed.items():
        for attribute, value in resized.attributes.items():
            numbers.write(copied.get_submodule(name), attribute, value)
    return copied


def masked(model: nn.Module, keep: Keep) -> nn.Module:
    """A copy of `model`, of the same size, in which every consumer of a dropped channel reads zero.

    Raises `UsageError` as `check_keep` does.
    """
    check_keep(keep)
    factors: dict[str, Tensor] = {}
    for group, mask in keep.items():
        for member in consumers(model, group):
            layer = model.get_submodule(member.layer)
            factor = factors.setdefault(member.layer, torch.ones(layers.axis_size(layer, "in")))
            factor[member.index[~mask.cpu()].reshape(-1)] = 0
    result = real_copy(model)
    for name, factor in factors.items():
        layer = result.get_submodule(name)
        weight = layer.get_parameter("weight")
        with torch.no_grad():
            weight.copy_(layers.scale_inputs(layer, factor.to(weight.device)))
    return result


def find(model: nn.Module, name: str) -> nn.Module | Tensor:
    """The submodule, or the parameter or buffer (...), called `name`. Raises `UsageError` when the
    model has none.
    """
    attribute: object = model
    for part in name.split(".") if name else []:
        attribute = getattr(attribute, part, None)
    if not isinstance(attribute, (nn.Module, Tensor)):
        raise UsageError(
            f"no layer '{name}' in {type(model).__name__}: the keep masks come from another model"
        )
    return attribute
