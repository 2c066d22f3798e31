"""The plan of a lesson, from which both ends derive the samples of each step and their view.

The first message of the student carries the complete `Plan`; the teacher checks that its own data
are the same. Order and augmentation are functions of (seed, epoch, id), so ids and pixels need not
travel. Both ends save their state every `keep_every` steps; after a break they return to the newest
step that both have saved, so a sample that was learned twice counts once in the result.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from torch import Tensor
from typing_extensions import TypedDict

from edgecompress.data import DataSet
from edgecompress.data.images import Augmentation, View
from edgecompress.errors import UsageError
from edgecompress.online.codec import Codec
from edgecompress.online.exchanges import exchange_of
from edgecompress.online.store import Label, StateStore
from edgecompress.online.wire import NO_STAMP, Message, Stamp
from edgecompress.train.batches import order

Count = Annotated[int, Field(ge=1, le=10_000_000)]
Side = Annotated[int, Field(ge=1, le=4096)]
Text = Annotated[str, Field(max_length=200)]
Steps = Annotated[int, Field(ge=0, le=4096)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]

MAX_STEPS_PER_MESSAGE = 4096


class DataShape(TypedDict):
    """What a plan records of the images besides their digest."""

    native: list[int]
    fill: list[int]


class AugmentationValues(TypedDict):
    """The fields of an `Augmentation`; no others are read."""

    flip: Literal["alternate"] | bool
    shift: Steps
    cutout: Steps


AugmentationValues.__pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[attr-defined]


def values_of(augmentation: Augmentation) -> AugmentationValues:
    """As a plan has it."""
    return {
        "flip": augmentation.flip,
        "shift": augmentation.shift,
        "cutout": augmentation.cutout,
    }


@dataclass(frozen=True)
class Plan:
    """The samples of a lesson, their order, and what travels. Both ends save their state every
    `keep_every` steps; up to `window` steps are requested ahead.

    `native` is the shape [C, H, W] of an image as it travels, `fill` the value [C] of pixels that
    an augmentation cuts out. `features` (hint or attention) and the sizes [H, W] of the student's
    `maps` belong to exchange features. With `mutual` each end also learns from the other, from
    logits that were computed `staleness` steps before they are used.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    run: Text
    exchange: Text
    codec: Text
    seed: Seed
    epochs: Count
    batch_size: Count
    samples: Count
    classes: Count
    data: Text
    data_digest: Text
    augmentation: AugmentationValues
    view_seed: Seed
    native: Annotated[list[Side], Field(min_length=3, max_length=3)]
    fill: Annotated[list[Annotated[int, Field(ge=0, le=255)]], Field(max_length=64)]
    keep_every: Count = 50
    window: Annotated[int, Field(ge=1, le=4096)] = 64
    top_k: Count = 4
    features: Text = ""
    maps: Annotated[
        list[Annotated[list[Side], Field(min_length=2, max_length=2)]], Field(max_length=16)
    ] = field(default_factory=list)
    mutual: bool = False
    staleness: Steps = 0

    def as_dict(self) -> dict[str, object]:
        """As JSON values, for `parsed`."""
        return asdict(self)

    @classmethod
    def parsed(cls, values: object) -> Plan:
        """The plan in a message (JSON values). Raises `UsageError` naming the first invalid
        value.
        """
        try:
            plan = _adapter().validate_json(json.dumps(values), strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            raise UsageError(
                f"plan: {'.'.join(map(str, first['loc']))}: {first['msg']}, not "
                f"{str(first['input'])[:60]!r}"
            ) from error
        return plan

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image as it travels."""
        channels, height, width = self.native
        return channels, height, width

    @property
    def steps_per_epoch(self) -> int:
        """Batches per epoch; a last batch of one sample is left out."""
        full, rest = divmod(self.samples, self.batch_size)
        return full + (rest > 1 or (full == 0 and rest > 0))

    @property
    def steps(self) -> int:
        """Batches of the lesson."""
        return self.steps_per_epoch * self.epochs

    def saves_after(self, step: int) -> bool:
        """Do both ends save their state after `step`? After the last step they do, too: then no
        step needs to be sent again.
        """
        return step % self.keep_every == 0 or step == self.steps

    def position(self, step: int) -> tuple[int, int]:
        """(epoch from 1, batch from 0 within it) of `step` (from 1)."""
        epoch, batch = divmod(step - 1, self.steps_per_epoch)
        return epoch + 1, batch

    def ids(self, step: int) -> Tensor:
        """The samples (B,) of `step` (from 1), in order."""
        epoch, batch = self.position(step)
        first = batch * self.batch_size
        return _order(self.samples, self.seed, epoch)[first : first + self.batch_size]

    def stamp(self, step: int, first: int = 0) -> Stamp:
        """The stamp of a message about the steps `first` (default: `step`) to `step`."""
        hashed = hashlib.sha256(f"{self.run} {first} {step} ".encode())
        for number in range(first or step, step + 1):
            hashed.update(self.ids(number).to(torch.int64).numpy().tobytes())
        return {
            "run": self.run,
            "epoch": self.position(step)[0],
            "step": step,
            "first": first,
            "digest": hashed.digest()[:8],
        }

    def run_stamp(self, epoch: int = 0) -> Stamp:
        """The stamp of a message about an epoch, or about the run."""
        return {**NO_STAMP, "run": self.run, "epoch": epoch}

    def steps_of(self, message: Message) -> range:
        """The steps that a message is about. Raises `UsageError` for a message of another lesson,
        or about other samples.
        """
        first = message.first or message.step
        valid = 0 < first <= message.step <= self.steps
        if message.run != self.run or not valid or message.step - first >= MAX_STEPS_PER_MESSAGE:
            raise UsageError(
                f"message '{message.kind}' of run '{message.run}', step {message.step}, in run "
                f"'{self.run}': start both ends again"
            )
        expected = self.stamp(message.step, message.first)
        if (message.epoch, message.digest) != (expected["epoch"], expected["digest"]):
            raise UsageError(
                f"step {message.step} has other samples at the two ends: give both the same "
                "--data and --seed"
            )
        return range(first, message.step + 1)

    def pixels(self, data: DataSet, step: int) -> tuple[Tensor, Tensor]:
        """(ids (B,), pixels (B, C, H, W) uint8 as augmented in this epoch) of `step`."""
        epoch, _ = self.position(step)
        ids = self.ids(step)
        view = _view(
            Augmentation(**self.augmentation),
            self.samples,
            (self.native[1], self.native[2]),
            self.view_seed,
            epoch - 1,
        )
        return ids, view(data.train.pixels[ids], ids, torch.tensor(self.fill))

    def new_codec(self) -> Codec:
        """A codec that has not sent or received anything."""
        return Codec(self.codec, self.samples, self.classes, self.top_k)

    def store(self, folder: Path | None) -> StateStore:
        """A store that holds as many states as the ends may be apart."""
        apart = max(2 * self.window, 2 * self.staleness, exchange_of(self).steps_apart(self))
        return StateStore(folder, 3 + -(-apart // self.keep_every))


@lru_cache(1)
def _adapter() -> TypeAdapter[Plan]:
    return TypeAdapter(Plan)


@lru_cache(8)
def _order(samples: int, seed: int, epoch: int) -> Tensor:
    """`order`, cached for the epochs in progress: several threads need it at once."""
    return order(samples, seed, epoch)


@lru_cache(8)
def _view(
    augmentation: Augmentation, samples: int, side: tuple[int, int], seed: int, number: int
) -> View:
    """How an epoch augments its samples."""
    return augmentation.view(samples, side, seed, number)


def shape_of(data: DataSet) -> DataShape:
    """The shape and fill value of the images of `data`."""
    return {
        "native": list(data.native_shape),
        "fill": data.fill.tolist(),
    }


def label_of(plan: Plan, own: Mapping[str, object]) -> Label:
    """The label of a state store for the lesson of `plan`."""
    return {"plan": plan.as_dict(), "own": dict(own)}
