"""What both ends of a lesson derive alike: which samples each step has, in which view, and what it means to have broken off.

The student's first message holds the whole `Plan`; the teacher checks that its data are the same. Order and augmentation are functions of
(seed, epoch, id), so ids and pixels need not travel. Both ends keep their state every `keep_every` steps; after a break they go back to the
newest step that both hold, so a sample that was learned twice is counted once in what survives.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgecompress import files
from edgecompress.data import DataSet
from edgecompress.data.images import Augmentation
from edgecompress.errors import EdgecompressError, UsageError
from edgecompress.train.batches import order

EXCHANGES = ("logits", "inputs", "weights")


class BrokenError(EdgecompressError):
    """The connection is gone, or the other end does not answer in time: go back and meet again."""


@dataclass(frozen=True)
class Plan:
    """A lesson: samples, their order, what travels. `keep_every` steps both ends keep their state; `window` steps may be under way."""

    run: str
    exchange: str
    codec: str
    seed: int
    epochs: int
    batch_size: int
    samples: int
    classes: int
    data: str
    data_digest: str
    augmentation: dict[str, Any]
    view_seed: int
    keep_every: int = 50
    window: int = 64
    top_k: int = 4

    def as_dict(self) -> dict[str, Any]:
        """As JSON values; `Plan(**values)` takes them back."""
        return asdict(self)

    @property
    def steps_an_epoch(self) -> int:
        """Batches of an epoch; a last one of one sample is left out."""
        whole, rest = divmod(self.samples, self.batch_size)
        return whole + (rest > 1 or (whole == 0 and rest > 0))

    @property
    def steps(self) -> int:
        """Batches of the lesson."""
        return self.steps_an_epoch * self.epochs

    def place(self, step: int) -> tuple[int, int]:
        """(epoch from 1, batch from 0 within it) of `step` (from 1)."""
        epoch, batch = divmod(step - 1, self.steps_an_epoch)
        return epoch + 1, batch

    def ids(self, step: int) -> Tensor:
        """The samples (B,) of `step` (from 1), in order."""
        epoch, batch = self.place(step)
        return self._order(epoch)[batch * self.batch_size : (batch + 1) * self.batch_size]

    def _order(self, epoch: int) -> Tensor:
        key = (self.samples, self.seed, epoch)
        if key not in _ORDERS:
            _ORDERS.clear()
            _ORDERS[key] = order(*key)
        return _ORDERS[key]

    def digest(self, step: int, ids: Tensor) -> bytes:
        """What a message of `step` must carry: 8 bytes that name run, step and the ordered samples."""
        text = f"{self.run} {step} ".encode() + ids.to(torch.int64).numpy().tobytes()
        return hashlib.sha256(text).digest()[:8]

    def pixels(self, data: DataSet, step: int) -> tuple[Tensor, Tensor]:
        """(samples (B,), their pixels (B, C, H, W) uint8 as this epoch shows them) of `step`."""
        epoch, _ = self.place(step)
        ids = self.ids(step)
        view = Augmentation(**self.augmentation).view(self.samples, data.native_shape[1:], self.view_seed, epoch - 1)
        fill = torch.tensor([round(255 * m) for m in data.preprocess.mean])
        return ids, view(data.train.pixels[ids], ids, fill)


_ORDERS: dict[tuple[int, int, int], Tensor] = {}


def check_plan(plan: Plan, data: DataSet | None, classes: int) -> None:
    """Raises `UsageError` when this end cannot follow `plan`: other data, other classes, an exchange that it does not know."""
    if plan.exchange not in EXCHANGES:
        raise UsageError(f"exchange '{plan.exchange}' is not known: allowed are {', '.join(EXCHANGES)}")
    if plan.classes != classes:
        raise UsageError(f"the student has {plan.classes} classes, the teacher {classes}: give both the same --data")
    if plan.exchange == "logits" and (data is None or data.digest() != plan.data_digest):
        raise UsageError(f"the student's data '{plan.data}' are not the teacher's: give both the same --data, or --exchange inputs")


class Shelf:
    """Kept states by step, the newest two on disk (in `folder`), the beginning always."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._kept: dict[int, Any] = {}

    def put(self, step: int, state: Any) -> None:
        """Keep `state` of `step`; older ones than the last three go."""
        self._kept[step] = state
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            with files.whole(self.folder / f"{step:09d}.pt") as temporary:
                torch.save(state, temporary)
        for old in sorted(self.steps())[1:-3]:
            self._kept.pop(old, None)
            if self.folder is not None:
                (self.folder / f"{old:09d}.pt").unlink(missing_ok=True)

    def steps(self) -> list[int]:
        """Steps of which a state is here; 0, the beginning, always."""
        stored = [int(path.stem) for path in self.folder.glob("*.pt")] if self.folder is not None else []
        return sorted({0, *self._kept, *stored})

    def get(self, step: int) -> Any:
        """The state of `step`, or None for the beginning."""
        if step == 0:
            return None
        if step not in self._kept and self.folder is not None:
            self._kept[step] = torch.load(self.folder / f"{step:09d}.pt", weights_only=True)
        return self._kept[step]

    def back_to(self, step: int) -> None:
        """Forget what is newer than `step`."""
        for newer in [known for known in self.steps() if known > step]:
            self._kept.pop(newer, None)
            if self.folder is not None:
                (self.folder / f"{newer:09d}.pt").unlink(missing_ok=True)


def newest_common(mine: list[int], theirs: list[int]) -> int:
    """The newest step that both ends hold."""
    return max({0, *mine} & {0, *theirs})


def parts(plan: Plan, start: int) -> Iterator[int]:
    """The steps after `start`, to the end."""
    return iter(range(start + 1, plan.steps + 1))


def with_codec(state: Any, codec: dict[str, Any]) -> Any:
    """A kept training with the state of its codec, as tensors."""
    return {**state, "codec": {name: torch.from_numpy(value.copy()) for name, value in codec.items()}}


def codec_of(state: Any) -> dict[str, Any]:
    """The codec's state in a kept training, as arrays."""
    return {name: value.numpy() for name, value in state["codec"].items()}


def rebound(plan: Plan, **values: Any) -> Plan:
    """`plan` with other values."""
    return replace(plan, **values)
