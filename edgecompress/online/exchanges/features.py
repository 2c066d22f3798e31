"""Exchange features: the maps of some of the teacher's layers travel with its logits.

The payload of an answer is the length of the encoded logits (uint32), the logits, then the maps.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from edgecompress.methods.features import KINDS, FeatureLoss, Taps, map_ends, reduced
from edgecompress.methods.sources import Size
from edgecompress.online.codec import Array
from edgecompress.online.connection import Connection
from edgecompress.online.exchanges.base import Exchange, MapShape, Outputs, StudentSetup
from edgecompress.online.exchanges.steps import LARGE_WINDOW, StepStudent, StepTeacher
from edgecompress.online.lesson import Lesson
from edgecompress.online.session import StudentSession
from edgecompress.train.fit import Companion, Loss


def pack_maps(logits: bytes, maps: Sequence[Array], codec: str) -> bytes:
    """Encoded logits and maps (B, C, H, W) as one payload: fp32 with codec fp32, else fp16."""
    kind = _map_type(codec)
    parts = [np.ascontiguousarray(one, kind).tobytes() for one in maps]
    return b"".join((struct.pack("<I", len(logits)), logits, *parts))


def unpack_maps(
    payload: bytes, shapes: Sequence[MapShape], count: int, codec: str
) -> tuple[bytes, list[Array]]:
    """(the encoded logits, maps (count, C, H, W) float32 of the `shapes` (C, H, W)).

    Raises `ValueError` for a payload of another size.
    """
    kind = np.dtype(_map_type(codec))
    (size,) = struct.unpack_from("<I", payload) if len(payload) >= 4 else (0,)
    place = 4 + size
    maps = list[Array]()
    for shape in shapes:
        number = count * int(np.prod(shape))
        values = np.frombuffer(payload, kind, number, place)
        maps.append(values.reshape(count, *shape).astype(np.float32))
        place += number * kind.itemsize
    if place != len(payload):
        raise ValueError(f"{len(payload)} bytes of logits and maps, expected {place}")
    return payload[4 : 4 + size], maps


def _map_type(codec: str) -> str:
    return "<f4" if codec == "fp32" else "<f2"


class FeaturesTeacher(StepTeacher):
    """Answers each step with logits and the maps that the student's layers are compared with."""

    def __init__(self, lesson: Lesson, session: StudentSession) -> None:
        super().__init__(lesson, session)
        example = torch.zeros(1, *lesson.preprocess.shape(self.plan.image_shape))
        ends = list(lesson.map_ends(example))
        count = min(len(ends), len(self.plan.maps))

        self._taps = Taps(ends[-count:], "teacher")
        self._sizes: list[Size] = [(size[0], size[1]) for size in self.plan.maps[-count:]]
        maps = self._reduced(lesson.maps(example, self._taps))
        self.map_shapes = [list(one.shape[1:]) for one in maps]

    def compute(self, step: int, payload: bytes) -> Outputs:
        """The logits and the reduced maps of a step."""
        logits, maps = self.lesson.forward(self.pixels(step, payload), self._taps)
        return Outputs(logits, [one.numpy() for one in self._reduced(maps)])

    def pack(self, logits: bytes, maps: Sequence[Array]) -> bytes:
        """Encoded logits and maps (B, C, h, w) as one payload."""
        return pack_maps(logits, maps, self.plan.codec)

    def _reduced(self, maps: Sequence[Tensor]) -> list[Tensor]:
        return [
            reduced(self.plan.features, one, size)
            for one, size in zip(maps, self._sizes, strict=True)
        ]


class FeaturesStudent(StepStudent):
    """Learns from logits and maps."""

    max_window = LARGE_WINDOW

    def training(self) -> tuple[Loss, Companion | None]:
        """The loss on logits, labels and maps; its adapters train with the student."""
        setup = self.setup
        torch.manual_seed(self.plan.seed)  # the adapters begin the same on every connection
        example = torch.zeros(1, *setup.data.image_shape)
        ends = list(map_ends(setup.model, example))[-len(self.map_shapes) :]
        channels = [shape[0] for shape in self.map_shapes]
        loss = FeatureLoss(
            self.plan.features,
            ends,
            setup.model,
            channels,
            self,
            setup.objective.learning_from(self),
            setup.objective.feature_weight,
        )
        return loss, loss

    def unpack(self, payload: bytes, count: int) -> tuple[bytes, list[Array]]:
        """(encoded logits, maps (count, C, h, w) float32) of an answer for `count` samples."""
        return unpack_maps(payload, self.map_shapes, count, self.plan.codec)


class Features(Exchange):
    """The teacher is frozen; both ends hold the data."""

    feature_kinds = KINDS

    def teacher(self, lesson: Lesson, session: StudentSession) -> FeaturesTeacher:
        """The end that sends maps. Raises `UsageError` for a network that makes none."""
        return FeaturesTeacher(lesson, session)

    def student(self, setup: StudentSetup, connection: Connection) -> FeaturesStudent:
        """The end that learns from maps."""
        return FeaturesStudent(setup, connection)


EXCHANGE = Features()
