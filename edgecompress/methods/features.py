"""Losses on features: hints (Romero et al. 2015) and attention transfer (Zagoruyko and Komodakis 2017).

hint        mean of (adapter(student) - teacher)^2; the adapter is a 1×1 convolution from the student's channels to the teacher's
attention   mean of (a(student) - a(teacher))^2, where a is the mean over channels of the squared activation, divided by its norm

Maps of different sizes are averaged down to the smaller one. The adapters train beside the student and are dropped with the training: the
student's class, and so its file, never sees them. When the student is cut, they lose the same inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
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
from edgecompress.train.fit import Loss, Moved

KINDS = ("hint", "attention")


def convolutions(model: nn.Module, example: Tensor) -> dict[str, tuple[int, int]]:
    """The convolutions of `model` that make maps larger than one pixel, in order, with the size (H, W) of their maps."""
    shapes = trace(model, example).output_shapes
    found = {n: (shapes[n][2], shapes[n][3]) for n, m in model.named_modules() if n in shapes and layers.is_conv(m) and len(shapes[n]) == 4}
    return {name: size for name, size in found.items() if size[0] * size[1] > 1}


def last_of_each_size(sizes: Mapping[str, tuple[int, int]]) -> list[str]:
    """The last convolution before each change of the map's size."""
    names = list(sizes)
    return [name for place, name in enumerate(names) if place + 1 == len(names) or sizes[names[place + 1]] != sizes[name]]


def default_pairs(
    student: nn.Module, teacher: nn.Module, student_example: Tensor, teacher_example: Tensor, most: int = 3
) -> dict[str, str]:
    """{student layer: teacher layer}: the last convolutions before each change of size, paired from the output back, at most `most`."""
    ends = [last_of_each_size(convolutions(m, e)) for m, e in ((student, student_example), (teacher, teacher_example))]
    if not all(ends):
        raise UsageError("features need convolutions in student and teacher: use a loss on logits alone")
    count = min(most, *(len(names) for names in ends))
    return dict(zip(ends[0][-count:], ends[1][-count:], strict=True))


@dataclass
class _Tap:
    """Keeps the last output of a layer."""

    value: Tensor | None = None

    def __call__(self, module: nn.Module, inputs: object, output: Tensor) -> None:
        self.value = output


class FeatureLoss:
    """`base` + `weight` * the mean feature loss over `pairs` of layers; a `Companion` of the student's training.

    The teacher runs beside the student on every batch, in eval mode, without gradients. Raises `UnknownNameError` for a layer that
    does not exist and `UsageError` for one that makes no maps.
    """

    def __init__(
        self,
        kind: str,
        pairs: Mapping[str, str],
        student: nn.Module,
        teacher: nn.Module,
        preprocess: Preprocess,
        base: Loss,
        weight: float = 1.0,
    ) -> None:
        self.kind, self.pairs, self.teacher, self.preprocess, self.base, self.weight = kind, dict(pairs), teacher, preprocess, base, weight
        self.mine, self.theirs = {name: _Tap() for name in pairs}, {name: _Tap() for name in pairs.values()}
        self.handles: list[torch.utils.hooks.RemovableHandle] = []
        self.attach(student)
        self.detach()
        self.adapters = nn.ModuleDict()
        if kind == "hint":
            device = next(student.parameters()).device
            for mine, other in self.pairs.items():
                narrow, wide = (layers.axis_size(m.get_submodule(n), "out") for m, n in ((student, mine), (teacher, other)))
                self.adapters[_key(mine)] = nn.Conv2d(narrow, wide, 1, bias=False).to(device)

    def attach(self, student: nn.Module) -> None:
        """Listen to the layers of `student` and of the teacher."""
        sides = ((student, self.mine, "student"), (self.teacher, self.theirs, "teacher"))
        for model, taps, role in sides:
            self.handles += [convolution_of(model, name, role).register_forward_hook(tap) for name, tap in taps.items()]

    def detach(self) -> None:
        """Take every hook off student and teacher, and forget what they said."""
        for handle in self.handles:
            handle.remove()
        self.handles = []
        for tap in (*self.mine.values(), *self.theirs.values()):
            tap.value = None

    def __call__(self, logits: Tensor, batch: Batch) -> Tensor:
        """The loss of the batch that the student has just read."""
        if batch.pixels is None:
            raise ValueError("a feature loss needs the pixels of its batch")
        self.teacher.eval()
        with torch.no_grad():
            self.teacher(compact(self.preprocess(batch.pixels)))
        values = [self._distance(mine, other) for mine, other in self.pairs.items()]
        return self.base(logits, batch) + self.weight * torch.stack(values).mean()

    def _distance(self, mine: str, other: str) -> Tensor:
        student, teacher = self.mine[mine].value, self.theirs[other].value
        if student is None or teacher is None:
            raise ValueError(f"layers {mine} and {other} have not run")
        student, teacher = student.float(), teacher.float()
        size = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
        student, teacher = (F.adaptive_avg_pool2d(x, size) for x in (student, teacher))
        if self.kind == "hint":
            adapted: Tensor = self.adapters[_key(mine)](student)
            return F.mse_loss(adapted, teacher)
        return (attention(student) - attention(teacher)).square().mean()

    def parameters(self) -> list[nn.Parameter]:
        """Those of the adapters."""
        return list(self.adapters.parameters())

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
    """Attention of `maps` (B, C, H, W): the mean square over channels, flattened, of unit length: (B, H * W)."""
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
