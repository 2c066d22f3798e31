"""What both ends of a lesson derive alike: which samples each step has, in which view, and what it means to have broken off.

The student's first message holds the whole `Plan`; the teacher checks that its data are the same. Order and augmentation are functions of
(seed, epoch, id), so ids and pixels need not travel. Both ends keep their state every `keep_every` steps; after a break they go back to the
newest step that both hold, so a sample that was learned twice is counted once in what survives.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgecompress import files
from edgecompress.data import DataSet
from edgecompress.data.images import Augmentation, View
from edgecompress.errors import EdgecompressError, UsageError
from edgecompress.online.codec import CODECS, EXCHANGES, TRAINING
from edgecompress.train.batches import order
from edgecompress.train.settings import FitSettings

MOST_UNDER_WAY = 4096
"""Steps that a plan may let be under way."""


class BrokenError(EdgecompressError):
    """The connection is gone, or the other end does not answer in time: go back and meet again."""


@dataclass(frozen=True)
class Plan:
    """A lesson: samples, their order, what travels. `keep_every` steps both ends keep their state; `window` steps may be under way.

    `features` (hint or attention) and the sizes [H, W] of the student's `maps` are those of exchange features. With `mutual` each end also
    learns from the other, from logits that were said `staleness` steps before they are used.
    """

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
    features: str = ""
    maps: list[list[int]] = field(default_factory=list)
    mutual: bool = False
    staleness: int = 0

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
        return _order(self.samples, self.seed, epoch)

    def digest(self, step: int, ids: Tensor) -> bytes:
        """What a message of `step` must carry: 8 bytes that name run, step and the ordered samples."""
        text = f"{self.run} {step} ".encode() + ids.to(torch.int64).numpy().tobytes()
        return hashlib.sha256(text).digest()[:8]

    def pixels(self, data: DataSet, step: int) -> tuple[Tensor, Tensor]:
        """(samples (B,), their pixels (B, C, H, W) uint8 as this epoch shows them) of `step`."""
        epoch, _ = self.place(step)
        ids = self.ids(step)
        view = _view(Augmentation(**self.augmentation), self.samples, data.native_shape[1:], self.view_seed, epoch - 1)
        fill = torch.tensor([round(255 * m) for m in data.preprocess.mean])
        return ids, view(data.train.pixels[ids], ids, fill)


@lru_cache(8)
def _order(samples: int, seed: int, epoch: int) -> Tensor:
    """`order`, kept for the epochs that are under way: several threads ask at once."""
    return order(samples, seed, epoch)


@lru_cache(8)
def _view(augmentation: Augmentation, samples: int, side: tuple[int, int], seed: int, number: int) -> View:
    """How an epoch shows its samples."""
    return augmentation.view(samples, side, seed, number)


def check_plan(plan: Plan, data: DataSet, train: FitSettings | None) -> None:
    """Raises `UsageError` when a teacher with these `data`, trained as `train` says (None: it stands still), cannot follow `plan`."""
    if plan.exchange not in EXCHANGES:
        raise UsageError(f"exchange '{plan.exchange}' is not known: allowed are {', '.join(EXCHANGES)}")
    counts = {"epochs": plan.epochs, "batch_size": plan.batch_size, "samples": plan.samples, "keep_every": plan.keep_every}
    for name, value in {**counts, "window": plan.window}.items():
        if value < 1 or (name == "window" and value > MOST_UNDER_WAY) or not isinstance(value, int):
            raise UsageError(f"{name} {value} is not allowed: 1 or more, a window at most {MOST_UNDER_WAY}")
    if plan.classes != len(data.classes):
        raise UsageError(f"the student has {plan.classes} classes, the teacher {len(data.classes)}: give both the same --data")
    if plan.exchange != "inputs" and data.digest() != plan.data_digest:
        raise UsageError(f"the student's data '{plan.data}' are not the teacher's: give both the same --data, or --exchange inputs")
    if train is None:
        if plan.mutual:
            raise UsageError("mutual learning needs a teacher that trains: serve it with --train")
        return
    if plan.exchange not in TRAINING:
        raise UsageError(f"--exchange {plan.exchange} asks a teacher that stands still: use --exchange logits, or serve it without --train")
    mine = (train.epochs, train.batch_size, train.view_seed, asdict(train.augmentation or data.augmentation))
    if mine != (plan.epochs, plan.batch_size, plan.view_seed, plan.augmentation):
        said = f"{plan.epochs} epochs, batches of {plan.batch_size}, seed {plan.view_seed}"
        raise UsageError(f"the student trains for {said}, the teacher for {mine[0]}, {mine[1]}, {mine[2]}: give both the same")


def check_student(plan: Plan) -> None:
    """Raises `UsageError` for a plan that contradicts itself."""
    if plan.exchange not in EXCHANGES or plan.codec not in CODECS:
        raise UsageError(f"--exchange {plan.exchange} --codec {plan.codec}: allowed are {', '.join(EXCHANGES)}, and {', '.join(CODECS)}")
    if plan.mutual and plan.exchange != "logits":
        raise UsageError(f"--mutual exchanges logits both ways: drop --exchange {plan.exchange}")
    if plan.staleness and not plan.mutual:
        raise UsageError("--staleness belongs to mutual learning: give --mutual too")
    if plan.staleness < 0 or plan.staleness > MOST_UNDER_WAY:
        raise UsageError(f"--staleness {plan.staleness} is not allowed: 0 to {MOST_UNDER_WAY}")


class Shelf:
    """Kept states by step, the newest `most` (in `folder`, so that they outlive the process), and the beginning."""

    def __init__(self, folder: Path | None, most: int = 3) -> None:
        self.folder, self.most = folder, most
        self._kept: dict[int, Any] = {}

    @classmethod
    def for_plan(cls, plan: Plan, folder: Path | None) -> Shelf:
        """One that holds as many as the ends may be apart."""
        return cls(folder, 3 + -(-2 * plan.window // plan.keep_every))

    def claim(self, plan: Plan) -> bool:
        """These states are of `plan`; those of any other go. Returns whether there were others."""
        if self.folder is None:
            return False
        label, text = self.folder / "lesson.json", plan.as_dict()
        foreign = self.plan() not in (None, text) or (not label.is_file() and self.steps() != [0])
        if foreign:
            self._drop(lambda _: True)
        files.write_json(label, text)
        return foreign

    def clear(self) -> None:
        """Forget everything."""
        self._drop(lambda _: True)
        if self.folder is not None:
            (self.folder / "lesson.json").unlink(missing_ok=True)

    def plan(self) -> dict[str, Any] | None:
        """The plan that these states are of."""
        label = self.folder / "lesson.json" if self.folder is not None else None
        return dict(json.loads(label.read_text())) if label is not None and label.is_file() else None

    def put(self, step: int, state: Any) -> None:
        """Keep `state` of `step`; the oldest go."""
        self._kept[step] = state
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            with files.whole(self.folder / f"{step:09d}.pt") as temporary:
                torch.save(state, temporary)
        old = set(self.steps()[1 : -self.most])
        self._drop(old.__contains__)

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
        self._drop(lambda known: known > step)

    def _drop(self, which: Callable[[int], bool]) -> None:
        for step in [known for known in self.steps() if known and which(known)]:
            self._kept.pop(step, None)
            if self.folder is not None:
                (self.folder / f"{step:09d}.pt").unlink(missing_ok=True)


def newest_common(*held: Iterable[int]) -> int:
    """The newest step that all hold; 0, the beginning, everyone does."""
    return max(set.intersection(*({0, *steps} for steps in held)))


def codec_tensors(state: dict[str, Any]) -> dict[str, Tensor]:
    """The state of a codec as tensors, which a shelf keeps."""
    return {name: torch.from_numpy(value.copy()) for name, value in state.items()}


def codec_arrays(state: dict[str, Tensor]) -> dict[str, Any]:
    """`codec_tensors`, back."""
    return {name: value.numpy() for name, value in state.items()}
