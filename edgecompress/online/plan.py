"""What both ends of a lesson derive alike: which samples each step has, in which view.

The student's first message holds the whole `Plan`; the teacher checks that its data are the same.
Order and augmentation are functions of (seed, epoch, id), so ids and pixels need not travel. Both
ends keep their state every `keep_every` steps; after a break they go back to the newest step that
both hold, so a sample that was learned twice is counted once in what survives.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from torch import Tensor

from edgecompress.data import DataSet
from edgecompress.data.images import Augmentation, View
from edgecompress.errors import EdgecompressError, UsageError
from edgecompress.online.codec import CODECS, EXCHANGES, TRAINING
from edgecompress.online.store import StateStore
from edgecompress.train.batches import order
from edgecompress.train.settings import FitSettings

Count = Annotated[int, Field(ge=1, le=10_000_000)]
Side = Annotated[int, Field(ge=1, le=4096)]
Text = Annotated[str, Field(max_length=200)]
Steps = Annotated[int, Field(ge=0, le=4096)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class ConnectionLostError(EdgecompressError):
    """The connection is gone, or the other end does not answer in time: go back and meet again."""


@dataclass(frozen=True)
class Plan:
    """A lesson: samples, their order, what travels. `keep_every` steps both ends keep their state;
    `window` steps may be under way.

    `native` is the shape [C, H, W] of an image as it travels, `fill` the value [C] of pixels that a
    view cuts out. `features` (hint or attention) and the sizes [H, W] of the student's `maps` are
    those of exchange features. With `mutual` each end also learns from the other, from logits that
    were said `staleness` steps before they are used.
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
    augmentation: dict[Text, bool | Steps]
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

    def as_dict(self) -> dict[str, Any]:
        """As JSON values; `parsed` takes them back."""
        return asdict(self)

    @classmethod
    def parsed(cls, values: Any) -> Plan:
        """The plan that a message holds. Raises `UsageError` naming the first value that is none of
        a plan's.
        """
        try:
            plan = _adapter().validate_json(json.dumps(values), strict=True)
            Augmentation(**plan.augmentation)  # type: ignore[arg-type]
        except ValidationError as error:
            first = error.errors()[0]
            raise UsageError(
                f"plan: {'.'.join(map(str, first['loc']))}: {first['msg']}, not "
                f"{str(first['input'])[:60]!r}"
            ) from error
        except TypeError as error:
            raise UsageError(f"plan: augmentation: {error}") from error
        return plan

    @property
    def steps_an_epoch(self) -> int:
        """Batches of an epoch; a last one of one sample is left out."""
        whole, rest = divmod(self.samples, self.batch_size)
        return whole + (rest > 1 or (whole == 0 and rest > 0))

    @property
    def steps(self) -> int:
        """Batches of the lesson."""
        return self.steps_an_epoch * self.epochs

    def keeps(self, step: int) -> bool:
        """Do both ends keep their state after `step`? After the last one, too: then nothing needs
        to be said again.
        """
        return step % self.keep_every == 0 or step == self.steps

    def place(self, step: int) -> tuple[int, int]:
        """(epoch from 1, batch from 0 within it) of `step` (from 1)."""
        epoch, batch = divmod(step - 1, self.steps_an_epoch)
        return epoch + 1, batch

    def ids(self, step: int) -> Tensor:
        """The samples (B,) of `step` (from 1), in order."""
        epoch, batch = self.place(step)
        return _order(self.samples, self.seed, epoch)[
            batch * self.batch_size : (batch + 1) * self.batch_size
        ]

    def stamp(self, step: int, first: int = 0) -> dict[str, Any]:
        """What a message of the steps `first` (default: `step`) to `step` carries: run, epoch,
        steps, and 8 bytes that name its samples.
        """
        hashed = hashlib.sha256(f"{self.run} {first} {step} ".encode())
        for one in range(first or step, step + 1):
            hashed.update(self.ids(one).to(torch.int64).numpy().tobytes())
        return {
            "run": self.run,
            "epoch": self.place(step)[0],
            "step": step,
            "first": first,
            "digest": hashed.digest()[:8],
        }

    def check(self, frame: Any) -> range:
        """The steps of a message. Raises `UsageError` when it is not of this lesson, or of other
        samples.
        """
        first = frame.first or frame.step
        if (
            frame.run != self.run
            or not 0 < first <= frame.step <= self.steps
            or frame.step - first >= 4096
        ):
            raise UsageError(
                f"message '{frame.kind}' of run '{frame.run}', step {frame.step}, in run "
                f"'{self.run}': start both ends again"
            )
        mine = self.stamp(frame.step, frame.first)
        if (frame.epoch, frame.digest) != (mine["epoch"], mine["digest"]):
            raise UsageError(
                f"step {frame.step} has other samples at the two ends: give both the same "
                "--data and --seed"
            )
        return range(first, frame.step + 1)

    def pixels(self, data: DataSet, step: int) -> tuple[Tensor, Tensor]:
        """(samples (B,), their pixels (B, C, H, W) uint8 as this epoch shows them) of `step`."""
        epoch, _ = self.place(step)
        ids = self.ids(step)
        view = _view(
            Augmentation(**self.augmentation),  # type: ignore[arg-type]
            self.samples,
            (self.native[1], self.native[2]),
            self.view_seed,
            epoch - 1,
        )
        return ids, view(data.train.pixels[ids], ids, torch.tensor(self.fill))

    def store(self, folder: Path | None) -> StateStore:
        """One that holds as many states as the ends may be apart."""
        apart = max(
            2 * self.window,
            2 * self.staleness,
            2 * self.steps_an_epoch if self.exchange == "weights" else 0,
        )
        return StateStore(folder, 3 + -(-apart // self.keep_every))


@lru_cache(1)
def _adapter() -> TypeAdapter[Plan]:
    return TypeAdapter(Plan)


@lru_cache(8)
def _order(samples: int, seed: int, epoch: int) -> Tensor:
    """`order`, kept for the epochs that are under way: several threads ask at once."""
    return order(samples, seed, epoch)


@lru_cache(8)
def _view(
    augmentation: Augmentation, samples: int, side: tuple[int, int], seed: int, number: int
) -> View:
    """How an epoch shows its samples."""
    return augmentation.view(samples, side, seed, number)


def shape_of(data: DataSet) -> dict[str, Any]:
    """What a plan says of data besides their digest."""
    return {
        "native": list(data.native_shape),
        "fill": [round(255 * mean) for mean in data.preprocess.mean],
    }


def check_options(plan: Plan) -> None:
    """Raises `UsageError` for a plan that contradicts itself."""
    if plan.exchange not in EXCHANGES or plan.codec not in CODECS:
        raise UsageError(
            f"--exchange {plan.exchange} --codec {plan.codec}: allowed are "
            f"{', '.join(EXCHANGES)}, and {', '.join(CODECS)}"
        )
    if plan.mutual and plan.exchange != "logits":
        raise UsageError(f"--mutual exchanges logits both ways: drop --exchange {plan.exchange}")
    if plan.staleness and not plan.mutual:
        raise UsageError("--staleness belongs to mutual learning: give --mutual too")
    if bool(plan.features) != (plan.exchange == "features") or plan.features not in (
        "",
        "hint",
        "attention",
    ):
        raise UsageError(
            f"--features '{plan.features}' beside --exchange {plan.exchange}: exchange "
            "features takes attention or hint"
        )


def check_plan(plan: Plan, data: DataSet | None, classes: int, train: FitSettings | None) -> None:
    """Raises `UsageError` when a teacher of so many classes, with these `data`, trained as `train`
    says, cannot follow `plan`.

    `train` is None for a teacher that stands still, `data` None for one that has none and is told
    all pixels.
    """
    check_options(plan)
    if plan.classes != classes:
        raise UsageError(
            f"the student has {plan.classes} classes, the teacher {classes}: give both the "
            "same --data"
        )
    if plan.exchange != "inputs" and (
        data is None or data.digest() != plan.data_digest or len(data.train) != plan.samples
    ):
        raise UsageError(
            f"the student's data '{plan.data}' are not the teacher's: give both the same "
            "--data, or --exchange inputs"
        )
    if train is None:
        if plan.mutual:
            raise UsageError("mutual learning needs a teacher that trains: serve it with --train")
        return
    if plan.exchange not in TRAINING:
        raise UsageError(
            f"--exchange {plan.exchange} asks a teacher that stands still: use --exchange "
            "logits, or serve it without --train"
        )
    mine = (
        train.epochs,
        train.batch_size,
        train.view_seed,
        asdict(train.augmentation or Augmentation()),
    )
    if mine != (plan.epochs, plan.batch_size, plan.view_seed, plan.augmentation):
        said = f"{plan.epochs} epochs, batches of {plan.batch_size}, seed {plan.view_seed}"
        raise UsageError(
            f"the student trains for {said}, the teacher for {mine[0]}, {mine[1]}, "
            f"{mine[2]}: give both the same"
        )


def label_of(plan: Plan, own: Mapping[str, Any]) -> dict[str, Any]:
    """The label of a store: the plan, and what else decides what one end learns (its network, loss,
    rate).
    """
    return {"plan": plan.as_dict(), "own": dict(own)}
