"""Losses on features: hints (Romero et al. 2015) and attention transfer (Zagoruyko and Komodakis
2017).

hint        mean of (adapter(student) - teacher)^2; the adapter is a 1×1 convolution from the
            student's channels to the teacher's
attention   mean of (a(student) - a(teacher))^2, where a is the mean over channels of the squared
            activation, divided by its norm

Feature maps of different sizes are average-pooled to the smaller one. The adapters train with the
student and are dropped after the training: the student's class, and so its file, never contains
them. When the student is cut, they lose the same inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from edgecompress.core import layers, trace
from edgecompress.core.shrink import Keep, kept_positions
from edgecompress.data import Preprocess
from edgecompress.errors import UnknownNameError, UsageError
from edgecompress.methods.sources import MapSource, Size
from edgecompress.train.batches import Batch
from edgecompress.train.companion import Kept, Moved
from edgecompress.train.losses import Loss
from edgecompress.train.modes import outputs_of

KINDS = ("hint", "attention")


# Which layers


def convolutions(model: nn.Module, example: Tensor) -> dict[str, Size]:
    """The convolutions of `model` whose feature maps for `example` (1, C, H, W) are larger than one
    pixel, in order, with the size of their maps.
    """
    shapes = trace(model, example).output_shapes
    sizes = {
        name: (shapes[name][2], shapes[name][3])
        for name, module in model.named_modules()
        if name in shapes and layers.is_conv(module) and len(shapes[name]) == 4
    }
    return {name: size for name, size in sizes.items() if size[0] * size[1] > 1}


def last_of_each_size(sizes: Mapping[str, Size]) -> list[str]:
    """The last convolution before each change of the feature maps' size."""
    names = list(sizes)
    return [
        name
        for place, name in enumerate(names)
        if place + 1 == len(names) or sizes[names[place + 1]] != sizes[name]
    ]


def map_ends(model: nn.Module, example: Tensor, most: int = 3) -> dict[str, Size]:
    """The last convolutions before each change of the feature maps' size, in order, with that size:
    at most `most`, those nearest the output. `example` is (1, C, H, W).

    Raises `UsageError` for a network without feature maps.
    """
    sizes = convolutions(model, example)
    if not sizes:
        raise UsageError(
            "features need convolutions in student and teacher: use a loss on logits alone"
        )
    return {name: sizes[name] for name in last_of_each_size(sizes)[-most:]}


def default_pairs(
    student: nn.Module, teacher: nn.Module, student_example: Tensor, teacher_example: Tensor
) -> dict[str, str]:
    """{student layer: teacher layer}: the `map_ends` of both for their examples (1, C, H, W),
    paired from the output back.
    """
    ours = list(map_ends(student, student_example))
    theirs = list(map_ends(teacher, teacher_example))
    count = min(len(ours), len(theirs))
    return dict(zip(ours[-count:], theirs[-count:], strict=True))


def convolution_of(model: nn.Module, name: str, role: str) -> nn.Module:
    """The convolution `name` of `model`. Raises `UnknownNameError` with the nearest names; `role`
    (student or teacher) is for its message.
    """
    known: dict[str, nn.Module] = {n: m for n, m in model.named_modules() if layers.is_conv(m)}
    if name not in known:
        raise UnknownNameError(f"{role} convolution", name, known)
    return known[name]


# Their outputs


@dataclass
class _Tap:
    """A forward hook that keeps the last output of its layer."""

    value: Tensor | None = None

    def __call__(self, module: nn.Module, inputs: object, output: Tensor) -> None:
        self.value = output


class Taps:
    """Records the outputs of the convolutions `names` of one network at a time; `role` (student or
    teacher) is for error messages.
    """

    def __init__(self, names: Sequence[str], role: str) -> None:
        self.names = list(names)
        self.role = role
        self._taps = [_Tap() for _ in names]
        self._handles: list[RemovableHandle] = []

    def attach(self, model: nn.Module) -> None:
        """Record the outputs of `model` from now on. Raises `UnknownNameError` for a layer that
        does not exist.
        """
        for name, tap in zip(self.names, self._taps, strict=True):
            layer = convolution_of(model, name, self.role)
            self._handles.append(layer.register_forward_hook(tap))

    def detach(self) -> None:
        """Remove every hook, and release the outputs recorded."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        for tap in self._taps:
            tap.value = None

    def outputs(self) -> list[Tensor]:
        """The last output (B, C, H, W) of each layer, float32. Raises `ValueError` for a layer that
        has not run.
        """
        outputs = []
        for name, tap in zip(self.names, self._taps, strict=True):
            if tap.value is None:
                raise ValueError(f"{self.role} layer {name} has not run")
            outputs.append(tap.value.float())
        return outputs


def attention(maps: Tensor) -> Tensor:
    """The attention (B, H * W) of feature maps (B, C, H, W): the mean square over channels,
    flattened, of unit length (Zagoruyko and Komodakis 2017, section 3.1).
    """
    return F.normalize(maps.square().mean(1).flatten(1))


def reduced(kind: str, maps: Tensor, size: Size) -> Tensor:
    """What a loss of `kind` needs of a teacher's feature `maps` (B, C, H, W), for a student's of
    `size`.

    They are average-pooled to the smaller of both sizes: (B, C, h, w) for a hint, their attention
    (B, 1, h, w) for attention.
    """
    small = (min(size[0], maps.shape[2]), min(size[1], maps.shape[3]))
    pooled = F.adaptive_avg_pool2d(maps, small)
    return pooled if kind == "hint" else attention(pooled).reshape(len(maps), 1, *small)


class FixedMaps:
    """A source of what a loss of `kind` needs of the layers `names` of `teacher`, a network in this
    process that reads pixels through `preprocess`. It runs on every batch, in eval mode, without
    gradients.

    Raises `UnknownNameError` for a layer that does not exist or is not a convolution.
    """

    def __init__(
        self, kind: str, names: Sequence[str], teacher: nn.Module, preprocess: Preprocess
    ) -> None:
        self.kind = kind
        self.teacher = teacher
        self.preprocess = preprocess
        self._taps = Taps(names, "teacher")
        self._taps.attach(teacher)  # names that do not exist are reported here
        self._taps.detach()

    @torch.no_grad()
    def maps(self, batch: Batch, sizes: Sequence[Size]) -> list[Tensor]:
        """The layers' maps (B, C, h, w) for `batch`, each `reduced` for a student's size."""
        if batch.pixels is None:
            raise ValueError("a feature loss needs the pixels of its batch")
        self.teacher.eval()
        self._taps.attach(self.teacher)
        try:
            outputs_of(self.teacher, self.preprocess(batch.pixels))
            pairs = zip(self._taps.outputs(), sizes, strict=True)
            return [reduced(self.kind, maps, size) for maps, size in pairs]
        finally:
            self._taps.detach()


# The loss


class FeatureLoss:
    """`base` + `weight` * the mean feature loss over `layers_` of the student; also the `Companion`
    of its training.

    `source` has the feature maps of as many of the teacher's layers, of `channels` channels each.
    Raises `UnknownNameError` for a layer that does not exist or is not a convolution.
    """

    def __init__(
        self,
        kind: str,
        layers_: Sequence[str],
        student: nn.Module,
        channels: Sequence[int],
        source: MapSource,
        base: Loss,
        weight: float = 1.0,
    ) -> None:
        self.kind = kind
        self.layers = list(layers_)
        self.source = source
        self.base = base
        self.weight = weight
        self.taps = Taps(self.layers, "student")
        self.attach(student)  # names that do not exist are reported here
        self.detach()
        self.adapters = nn.ModuleDict()
        if kind == "hint":
            device = next(student.parameters()).device
            for name, wide in zip(self.layers, channels, strict=True):
                narrow = layers.axis_size(student.get_submodule(name), "out")
                self.adapters[_key(name)] = nn.Conv2d(narrow, wide, 1, bias=False).to(device)

    @classmethod
    def of_pairs(
        cls,
        kind: str,
        pairs: Mapping[str, str],
        student: nn.Module,
        teacher: nn.Module,
        preprocess: Preprocess,
        base: Loss,
        weight: float = 1.0,
    ) -> FeatureLoss:
        """The loss over `pairs` {student layer: teacher layer}, the teacher in this process, which
        reads pixels through `preprocess`.
        """
        names = list(pairs.values())
        channels = [
            layers.axis_size(convolution_of(teacher, name, "teacher"), "out") for name in names
        ]
        source = FixedMaps(kind, names, teacher, preprocess)
        return cls(kind, list(pairs), student, channels, source, base, weight)

    def __call__(self, logits: Tensor, batch: Batch) -> Tensor:
        """The loss, a scalar, of the batch for which the student has just computed `logits`
        (B, K).
        """
        student_maps = self.taps.outputs()  # each (B, C, H, W)
        sizes = [(maps.shape[2], maps.shape[3]) for maps in student_maps]
        teacher_maps = self.source.maps(batch, sizes)
        distances = [
            self._distance(name, *pair)
            for name, *pair in zip(self.layers, student_maps, teacher_maps, strict=True)
        ]
        return self.base(logits, batch) + self.weight * torch.stack(distances).mean()

    def _distance(self, name: str, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss, a scalar, of a layer's maps (B, C, H, W) and the teacher's `reduced` ones."""
        pooled = F.adaptive_avg_pool2d(student, (teacher.shape[2], teacher.shape[3]))
        if self.kind == "hint":
            adapted: Tensor = self.adapters[_key(name)](pooled)
            return F.mse_loss(adapted, teacher)
        return (attention(pooled) - teacher.flatten(1)).square().mean()

    # The companion of the student's training

    def attach(self, model: nn.Module) -> None:
        """Record the outputs of the student, `model`."""
        self.taps.attach(model)

    def detach(self) -> None:
        """Remove every hook from the student, and release its outputs."""
        self.taps.detach()

    def parameters(self) -> list[nn.Parameter]:
        """Those of the adapters."""
        return list(self.adapters.parameters())

    def kept(self) -> Kept:
        """The adapters' weights."""
        return {name: value.detach().clone() for name, value in self.adapters.state_dict().items()}

    def take(self, kept: Kept) -> None:
        """Restore the adapters' weights."""
        self.adapters.load_state_dict(kept)

    def follow(self, model: nn.Module, small: nn.Module, keep: Keep) -> list[Moved]:
        """Remove from each adapter the inputs that its layer lost."""
        moved: list[Moved] = []
        for name, axes in kept_positions(model, keep).items():
            if _key(name) not in self.adapters or "out" not in axes:
                continue
            places = axes["out"].nonzero()[:, 0]
            weight = self.adapters[_key(name)].get_parameter("weight")  # (O, I, 1, 1)
            adapter = nn.Conv2d(len(places), weight.shape[0], 1, bias=False).to(weight.device)
            adapter.weight = nn.Parameter(_columns(places, weight.detach()))
            self.adapters[_key(name)] = adapter
            moved.append((weight, adapter.weight, partial(_columns, places)))
        return moved


def _columns(places: Tensor, values: Tensor) -> Tensor:
    """The columns `places` (I',) of `values` (O, I, ...): (O, I', ...)."""
    return values[:, places.to(values.device)].clone()


def _key(name: str) -> str:
    """A module's name as a key of a ModuleDict, which may not contain dots."""
    return name.replace(".", "/")
