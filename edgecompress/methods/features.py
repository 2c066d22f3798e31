"""Losses on features: hints (Romero et al. 2015) and attention transfer (Zagoruyko and Komodakis
2017).

hint        mean of (adapter(student) - teacher)^2; the adapter is a 1×1 convolution from the
            student's channels to the teacher's
attention   mean of (a(student) - a(teacher))^2, where a is the mean over channels of the squared
            activation, divided by its norm

Maps of different sizes are averaged down to the smaller one. The adapters train beside the student
and are dropped with the training: the student's class, and so its file, never sees them. When the
student is cut, they lose the same inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgecompress.core import layers, trace
from edgecompress.core.shrink import Keep, kept_positions
from edgecompress.data import Preprocess
from edgecompress.errors import UnknownNameError, UsageError
from edgecompress.train.batches import Batch, compact
from edgecompress.train.fit import Kept, Loss, Moved

KINDS = ("hint", "attention")
Size = tuple[int, int]
"""(H, W) of a map."""


def convolutions(model: nn.Module, example: Tensor) -> dict[str, Size]:
    """The convolutions of `model` that make maps larger than one pixel, in order, with the size (H,
    W) of their maps.
    """
    shapes = trace(model, example).output_shapes
    found = {
        n: (shapes[n][2], shapes[n][3])
        for n, m in model.named_modules()
        if n in shapes and layers.is_conv(m) and len(shapes[n]) == 4
    }
    return {name: size for name, size in found.items() if size[0] * size[1] > 1}


def last_of_each_size(sizes: Mapping[str, Size]) -> list[str]:
    """The last convolution before each change of the map's size."""
    names = list(sizes)
    return [
        name
        for place, name in enumerate(names)
        if place + 1 == len(names) or sizes[names[place + 1]] != sizes[name]
    ]


def map_ends(model: nn.Module, example: Tensor, most: int = 3) -> dict[str, Size]:
    """The last convolutions before each change of the map's size, in order, with that size: at most
    `most`, those nearest the output.

    Raises `UsageError` for a network that makes no maps.
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
    """{student layer: teacher layer}: the `map_ends` of both, paired from the output back."""
    mine, theirs = (
        list(map_ends(student, student_example)),
        list(map_ends(teacher, teacher_example)),
    )
    count = min(len(mine), len(theirs))
    return dict(zip(mine[-count:], theirs[-count:], strict=True))


@dataclass
class _Tap:
    """Keeps the last output of a layer."""

    value: Tensor | None = None

    def __call__(self, module: nn.Module, inputs: object, output: Tensor) -> None:
        self.value = output


Said = Callable[[Batch, Sequence[Size]], Sequence[Tensor]]
"""(batch, the sizes (H, W) of the student's maps) -> what the teacher's layers say of it, each as
`reduced` makes it.
"""


class Taps:
    """Listens to named convolutions of one network at a time. Raises `UnknownNameError` for a layer
    that does not exist.
    """

    def __init__(self, names: Sequence[str], role: str) -> None:
        self.names, self.role = list(names), role
        self._taps = [_Tap() for _ in names]
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def attach(self, model: nn.Module) -> None:
        """Listen to `model`."""
        for name, tap in zip(self.names, self._taps, strict=True):
            self._handles.append(convolution_of(model, name, self.role).register_forward_hook(tap))

    def detach(self) -> None:
        """Take every hook off, and forget what was heard."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        for tap in self._taps:
            tap.value = None

    def heard(self) -> list[Tensor]:
        """The last output (B, C, H, W) of each layer, float32."""
        missing = [
            name for name, tap in zip(self.names, self._taps, strict=True) if tap.value is None
        ]
        if missing:
            raise ValueError(f"{self.role} layer {missing[0]} has not run")
        return [tap.value.float() for tap in self._taps if tap.value is not None]


def reduced(kind: str, maps: Tensor, size: Size) -> Tensor:
    """What a loss of `kind` reads of a teacher's `maps` (B, C, H, W) beside a student's maps of
    `size`.

    They are averaged down to the smaller of both sizes: (B, C, h, w) for a hint, their attention
    (B, 1, h, w) for attention.
    """
    small = (min(size[0], maps.shape[2]), min(size[1], maps.shape[3]))
    pooled = F.adaptive_avg_pool2d(maps, small)
    return pooled if kind == "hint" else attention(pooled).reshape(len(maps), 1, *small)


def beside(kind: str, names: Sequence[str], teacher: nn.Module, preprocess: Preprocess) -> Said:
    """A teacher that runs here on every batch, in eval mode, without gradients."""
    taps = Taps(names, "teacher")
    taps.attach(teacher)
    taps.detach()

    def said(batch: Batch, sizes: Sequence[Size]) -> list[Tensor]:
        if batch.pixels is None:
            raise ValueError("a feature loss needs the pixels of its batch")
        teacher.eval()
        taps.attach(teacher)
        try:
            with torch.no_grad():
                teacher(compact(preprocess(batch.pixels)))
            return [
                reduced(kind, maps, size) for maps, size in zip(taps.heard(), sizes, strict=True)
            ]
        finally:
            taps.detach()

    return said


class FeatureLoss:
    """`base` + `weight` * the mean feature loss over `layers` of the student; a `Companion` of its
    training.

    `said` gives what the teacher's layers, of `channels` channels each, say of a batch. Raises
    `UnknownNameError` for a layer that does not exist and `UsageError` for one that makes no maps.
    """

    def __init__(
        self,
        kind: str,
        layers_: Sequence[str],
        student: nn.Module,
        channels: Sequence[int],
        said: Said,
        base: Loss,
        weight: float = 1.0,
    ) -> None:
        self.kind, self.layers, self.said, self.base, self.weight = (
            kind,
            list(layers_),
            said,
            base,
            weight,
        )
        self.taps = Taps(self.layers, "student")
        self.attach(student)
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
        """The loss over `pairs` {student layer: teacher layer}, the teacher beside the student."""
        channels = [
            layers.axis_size(convolution_of(teacher, name, "teacher"), "out")
            for name in pairs.values()
        ]
        return cls(
            kind,
            list(pairs),
            student,
            channels,
            beside(kind, list(pairs.values()), teacher, preprocess),
            base,
            weight,
        )

    def attach(self, student: nn.Module) -> None:
        """Listen to the layers of `student`."""
        self.taps.attach(student)

    def detach(self) -> None:
        """Take every hook off the student, and forget what it said."""
        self.taps.detach()

    def __call__(self, logits: Tensor, batch: Batch) -> Tensor:
        """The loss of the batch that the student has just read."""
        mine = self.taps.heard()
        theirs = self.said(batch, [(maps.shape[2], maps.shape[3]) for maps in mine])
        values = [
            self._distance(name, *pair)
            for name, *pair in zip(self.layers, mine, theirs, strict=True)
        ]
        return self.base(logits, batch) + self.weight * torch.stack(values).mean()

    def _distance(self, name: str, student: Tensor, said: Tensor) -> Tensor:
        student = F.adaptive_avg_pool2d(student, (said.shape[2], said.shape[3]))
        if self.kind == "hint":
            adapted: Tensor = self.adapters[_key(name)](student)
            return F.mse_loss(adapted, said)
        return (attention(student) - said.flatten(1)).square().mean()

    def parameters(self) -> list[nn.Parameter]:
        """Those of the adapters."""
        return list(self.adapters.parameters())

    def kept(self) -> Kept:
        """The adapters' weights."""
        return {name: value.detach().clone() for name, value in self.adapters.state_dict().items()}

    def take(self, kept: Kept) -> None:
        """Have them again."""
        self.adapters.load_state_dict(kept)

    def follow(self, model: nn.Module, small: nn.Module, keep: Keep) -> list[Moved]:
        """Each adapter loses the inputs that its layer lost."""
        moved: list[Moved] = []
        for name, axes in kept_positions(model, keep).items():
            if _key(name) not in self.adapters or "out" not in axes:
                continue
            old, places = self.adapters[_key(name)], axes["out"].nonzero()[:, 0]
            weight = old.get_parameter("weight")
            fresh = nn.Conv2d(len(places), weight.shape[0], 1, bias=False).to(weight.device)
            fresh.weight = nn.Parameter(_columns(places, weight.detach()))
            self.adapters[_key(name)] = fresh
            moved.append((weight, fresh.weight, partial(_columns, places)))
        return moved


def attention(maps: Tensor) -> Tensor:
    """Attention of `maps` (B, C, H, W): the mean square over channels, flattened, of unit length:
    (B, H * W).
    """
    return F.normalize(maps.square().mean(1).flatten(1))


def _columns(places: Tensor, values: Tensor) -> Tensor:
    """The columns `places` of `values` (O, I, ...)."""
    return values[:, places.to(values.device)].clone()


def _key(name: str) -> str:
    """A module's name as a key of a ModuleDict, which takes no dots."""
    return name.replace(".", "/")


def convolution_of(model: nn.Module, name: str, role: str) -> nn.Module:
    """The convolution called `name`. Raises `UnknownNameError` naming the nearest."""
    known: dict[str, nn.Module] = {n: m for n, m in model.named_modules() if layers.is_conv(m)}
    if name not in known:
        raise UnknownNameError(f"{role} convolution", name, known)
    return known[name]
