"""What all streams of a teacher share: the network that answers, its students, and its counters."""

from __future__ import annotations

import contextlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edgecompress.data import DataSet, Preprocess
from edgecompress.errors import UsageError
from edgecompress.methods.features import Taps, map_ends
from edgecompress.methods.sources import Size
from edgecompress.online.checks import check_plan
from edgecompress.online.codec import Array
from edgecompress.online.exchanges import exchange_of
from edgecompress.online.plan import Plan
from edgecompress.online.registry import StudentRegistry
from edgecompress.train.modes import outputs_of
from edgecompress.train.settings import FitSettings

if TYPE_CHECKING:
    from edgecompress.online.exchanges.base import Outputs
    from edgecompress.online.stream import Stream


class Traffic:
    """Bytes that a teacher has sent and received; several threads count."""

    def __init__(self) -> None:
        self.payload_bytes = 0
        self.wire_bytes = 0
        self._lock = threading.Lock()

    def add_payload(self, size: int) -> None:
        """Count the payload of a step."""
        with self._lock:
            self.payload_bytes += size

    def add_frame(self, size: int) -> None:
        """Count a frame."""
        with self._lock:
            self.wire_bytes += size


class Lesson(ABC):
    """A network in eval mode, and the students that learn from it.

    `data` is None for a teacher that receives all pixels. `steps` are those of its training, or the
    answers that it computed. `settings` are those of its training, None for a frozen network.
    """

    settings: FitSettings | None = None
    is_pruned = False
    """Does the network get smaller while it trains?"""

    def __init__(
        self,
        model: nn.Module,
        data: DataSet | None,
        preprocess: Preprocess,
        classes: int,
        registry: StudentRegistry,
        note: Callable[[str], None],
    ) -> None:
        self.model = model.eval()
        self.data = data
        self.preprocess = preprocess
        self.classes = classes
        self.registry = registry
        self.note = note
        self.traffic = Traffic()
        self.steps = 0
        self._lock = threading.Lock()
        self._map_ends: dict[str, Size] | None = None

    @property
    def trains(self) -> bool:
        """Does the network train at the same time?"""
        return self.settings is not None

    @property
    @abstractmethod
    def finished(self) -> bool:
        """Has the teacher's own training ended?"""

    @abstractmethod
    def run(self, patience: float | None) -> None:
        """The teacher's part of the lesson.

        Raises `EdgecompressError` when a student stays away for `patience` seconds.
        """

    @abstractmethod
    def outputs(self, stream: Stream, step: int, compute: Callable[[], Outputs]) -> Outputs | None:
        """The outputs for a step of the stream's student; `compute` asks the network for them. None
        when it is time for a heartbeat.
        """

    @abstractmethod
    def weights(self, epoch: int) -> bytes | None:
        """The state dict before `epoch` as safetensors; None when it is not there yet."""

    def check(self, plan: Plan) -> None:
        """Raises `UsageError` when this teacher cannot follow `plan`."""
        check_plan(plan, self.data, self.classes, self.settings)
        exchange_of(plan).check_teacher(plan, self)

    def check_reads(self, shape: tuple[int, int, int]) -> None:
        """Raises `UsageError` for images of `shape` (C, H, W) that the network cannot read."""
        try:
            with self._network() as model:
                outputs_of(model, self.preprocess(torch.zeros(1, *shape, dtype=torch.uint8)))
        except Exception as error:  # torch raises what its layers raise
            raise UsageError(
                f"the student's images of {shape} are none that this teacher reads: "
                f"{' '.join(str(error).split())}"
            ) from error

    def forward(self, pixels: Tensor, taps: Taps | None = None) -> tuple[Array, list[Tensor]]:
        """(logits (B, K) float32, the outputs (B, C, H, W) of the layers that `taps` name) of
        `pixels` (B, C, H, W) uint8.
        """
        with self._network(taps) as model:
            self.steps += 1
            logits = outputs_of(model, self.preprocess(pixels)).float().numpy()
            return logits, taps.outputs() if taps is not None else []

    def map_ends(self, example: Tensor) -> dict[str, Size]:
        """The layers whose maps may travel, with the sizes (H, W) of the maps, for images like
        `example` (1, C, H, W). Raises `UsageError` for a network that makes no maps.
        """
        with self._network() as model:
            self._map_ends = self._map_ends or map_ends(model, example)
            return self._map_ends

    def maps(self, example: Tensor, taps: Taps) -> list[Tensor]:
        """The outputs (1, C, H, W) of the layers that `taps` name, for `example` (1, C, H, W)."""
        with self._network(taps) as model:
            model(example)
            return taps.outputs()

    @contextlib.contextmanager
    def _network(self, taps: Taps | None = None) -> Iterator[nn.Module]:
        """The network, for one thread at a time; `taps` record the outputs of its layers."""
        with self._lock, torch.no_grad(), contextlib.ExitStack() as stack:
            if taps is not None:
                taps.attach(self.model)
                stack.callback(taps.detach)
            yield self.model


class FrozenLesson(Lesson):
    """A network that does not change. It answers each student by itself."""

    @property
    def finished(self) -> bool:
        """There is no training to wait for."""
        return True

    def run(self, patience: float | None) -> None:
        """Nothing to do: the streams ask the network."""

    def outputs(self, stream: Stream, step: int, compute: Callable[[], Outputs]) -> Outputs | None:
        """Computed now."""
        return compute()

    def weights(self, epoch: int) -> bytes:
        """The same for every epoch."""
        return packed_weights(self.model)


def packed_weights(model: nn.Module) -> bytes:
    """The state dict of `model` as safetensors."""
    from safetensors.torch import save

    return bytes(save({key: value.contiguous() for key, value in model.state_dict().items()}))
