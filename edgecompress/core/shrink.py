"""Build the smaller network that a keep mask describes: `shrink(model, keep)`, and its twin in
place, `masked(model, keep)`.

Law 3: in eval mode `masked(model, keep)(x) == shrink(model, keep)(x)`: a channel is gone exactly
when every consumer reads zero.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from edgecompress.core import layers
from edgecompress.core.graph import ChannelGroup, consumers
from edgecompress.errors import UsageError

Keep = Mapping[ChannelGroup, Tensor]
"""For each group a bool tensor (C,), true where the channel stays. A group that is absent stays
whole.
"""


def check_keep(keep: Keep) -> None:
    """Raises `UsageError` for a mask of the wrong shape or type, an emptied group, or a cut in a
    frozen one.
    """
    for group, mask in keep.items():
        if mask.dtype != torch.bool or tuple(mask.shape) != (group.size,):
            shape = tuple(mask.shape)
            raise UsageError(
                f"keep mask of group '{group.name}' is {mask.dtype} {shape}: give torch.bool "
                f"({group.size},)"
            )
        if not mask.any():
            raise UsageError(
                f"keep mask of group '{group.name}' drops all {group.size} channels: keep at "
                "least 1"
            )
        if group.frozen is not None and not mask.all():
            raise UsageError(
                f"group '{group.name}' must stay whole ({group.frozen}): drop none of its channels"
            )


def kept_positions(model: nn.Module, keep: Keep) -> dict[str, dict[str, Tensor]]:
    """`{layer: {axis: bool (size,)}}`: the positions of each cut axis that stay."""
    kept: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for group, mask in keep.items():
        if mask.all():
            continue
        for member in group.members:
            layer = find(model, member.layer)
            if member.axis not in kept[member.layer]:
                size = (
                    layer.shape[int(member.axis[3:])]
                    if isinstance(layer, Tensor)
                    else layers.axis_size(layer, member.axis)
                )
                kept[member.layer][member.axis] = torch.ones(size, dtype=torch.bool)
            dropped = member.index[~mask.cpu()].reshape(-1)
            positions = kept[member.layer][member.axis]
            if dropped.numel() and int(dropped.max()) >= positions.numel():
                raise UsageError(
                    f"group '{group.name}' was traced on another model: trace this one and "
                    "choose again"
                )
            positions[dropped] = False
    return dict(kept)


def shrink(model: nn.Module, keep: Keep) -> nn.Module:
    """A new model of the same class with only the channels that `keep` keeps; `model` is unchanged.

    The result shares no memory with `model`. Raises `UsageError` as `check_keep` does.
    """
    check_keep(keep)
    return rebuilt(
        model,
        {
            name: layers.cut(find(model, name), axes)
            for name, axes in kept_positions(model, keep).items()
        },
    )


def rebuilt(model: nn.Module, changed: Mapping[str, layers.Cut]) -> nn.Module:
    """A copy of `model` in which the layers `changed`, by name, have other tensors and
    attributes.
    """
    memo: dict[int, object] = {}
    for name, cut in changed.items():
        layer = find(model, name)
        for tensor_name, tensor in cut.tensors.items():
            old = layer if isinstance(layer, Tensor) else getattr(layer, tensor_name)
            memo[id(old)] = (
                nn.Parameter(tensor, old.requires_grad) if isinstance(old, nn.Parameter) else tensor
            )
    copied = copy.deepcopy(model, memo)
    for name, cut in changed.items():
        for attribute, value in cut.attributes.items():
            setattr(copied.get_submodule(name), attribute, value)
    return copied


def masked(model: nn.Module, keep: Keep) -> nn.Module:
    """A copy of `model`, of the same size, in which every consumer of a dropped channel reads zero
    from it.
    """
    check_keep(keep)
    factors: dict[str, Tensor] = {}
    for group, mask in keep.items():
        for member in consumers(model, group):
            layer = model.get_submodule(member.layer)
            factor = factors.setdefault(member.layer, torch.ones(layers.axis_size(layer, "in")))
            factor[member.index[~mask.cpu()].reshape(-1)] = 0
    result = copy.deepcopy(model)
    for name, factor in factors.items():
        layer = result.get_submodule(name)
        weight = layer.get_parameter("weight")
        with torch.no_grad():
            weight.copy_(layers.scale_inputs(layer, factor.to(weight.device)))
    return result


def find(model: nn.Module, name: str) -> nn.Module | Tensor:
    """The submodule, parameter or buffer called `name`. Raises `UsageError` when the model has
    none.
    """
    found: object = model
    for part in name.split(".") if name else []:
        found = getattr(found, part, None)
    if not isinstance(found, (nn.Module, Tensor)):
        raise UsageError(
            f"no layer '{name}' in {type(model).__name__}: the keep masks come from another model"
        )
    return found
