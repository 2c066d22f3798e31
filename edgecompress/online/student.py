"""The student's end: an ordinary training whose teacher answers over the network.

Requests run `window` steps ahead of the training, so that the way there and back is hidden. A
connection that breaks raises `ConnectionLostError` inside the training; `attend` then meets the
teacher again, both go back to the newest step that both hold, and the training continues there.
"""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from edgecompress.data import DataSet
from edgecompress.errors import EdgecompressError, UsageError
from edgecompress.methods.distill import learning_from
from edgecompress.methods.features import FeatureLoss, map_ends
from edgecompress.online.connection import Answer, Connection
from edgecompress.online.mutual import Mutual
from edgecompress.online.plan import ConnectionLostError, Plan
from edgecompress.online.secure import Tls
from edgecompress.online.store import codec_tensors
from edgecompress.train.batches import Batch
from edgecompress.train.fit import Companion, FitResult, Hooks, Kept, Loss, fit
from edgecompress.train.history import EpochRow
from edgecompress.train.settings import FitSettings

T = TypeVar("T")


@dataclass
class Tally:
    """What the surviving history of a lesson took; `timeline` has a row an epoch.

    `payload_bytes` are those of its steps, each counted once. `wire_bytes` are all frames that this
    end has sent and received, what was said again after a break too; after a kill they go on from
    what was kept.
    """

    payload_bytes: int = 0
    wire_bytes: int = 0
    samples: int = 0
    steps: int = 0
    breaks: int = 0
    elapsed_s: float = 0.0
    weights_epoch: int = 0
    step_ms: list[float] = field(default_factory=list)
    wait_ms: list[float] = field(default_factory=list)
    timeline: list[dict[str, Any]] = field(default_factory=list)


class Student:
    """Trains `model` in the lesson that `plan` describes. `cut` are the hooks of a training in
    which it is pruned, `mentor` the teacher's network where its weights travel.
    """

    def __init__(
        self,
        model: nn.Module,
        data: DataSet,
        settings: FitSettings,
        plan: Plan,
        *,
        name: str = "student",
        states: Path | None = None,
        loss: str = "kl",
        temperature: float | None = None,
        alpha: float | None = None,
        feature_weight: float = 1.0,
        mentor: nn.Module | None = None,
        cut: Hooks | None = None,
        on_epoch: Callable[[EpochRow], None] | None = None,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.model, self.data, self.settings, self.plan, self.name, self.note = (
            model,
            data,
            settings,
            plan,
            name,
            note,
        )
        self.loss, self.temperature, self.alpha, self.feature_weight = (
            loss,
            temperature,
            alpha,
            feature_weight,
        )
        self.cut, self.on_epoch = cut or Hooks(), on_epoch
        self.store, self.tally = plan.store(states), Tally()
        self.mentor, self.mentor_epoch = mentor, 0
        self.instance = secrets.token_hex(8)
        self._ends = (
            list(map_ends(model, torch.zeros(1, *data.image_shape)))
            if plan.exchange == "features"
            else []
        )
        self._connection: Connection | None = None
        self._batch: Batch | None = None
        self._said = Answer(torch.zeros(0), [], 0)
        self._step, self._began, self._last, self._waiting = (
            0,
            time.monotonic(),
            time.monotonic(),
            0.0,
        )

    def attend(
        self,
        target: str,
        tls: Tls | None,
        patience: float = 60.0,
        finished: Callable[[FitResult], None] | None = None,
    ) -> FitResult:
        """Learn to the end, meeting the teacher at `target` (host:port) again after every break.

        `finished` is called with the result before the teacher hears that the lesson is over.
        Raises `EdgecompressError` when the teacher stays away, or no step is gained, for `patience`
        seconds, `UsageError` when it refuses.
        """
        pristine = {key: value.clone() for key, value in self.model.state_dict().items()}
        result, furthest, since, wait = None, -1, time.monotonic(), 0.2
        while True:
            connection = self._connection = Connection(
                target, tls, self.plan, self.name, self.instance
            )
            try:
                start = connection.meet(self.store.steps(), self.store.get, min(5.0, patience))
                wait = 0.2
                if result is None or (
                    self.plan.mutual and start < self.plan.steps
                ):  # the teacher needs it once more
                    result = self._learn(connection, start, pristine)
                    since = time.monotonic()
                    self._count(connection)
                    if finished is not None:
                        finished(result)
                if connection.end({"epochs": self.plan.epochs, "steps": self.tally.steps}):
                    return result
                raise ConnectionLostError("the teacher did not hear that the lesson is over")
            except ConnectionLostError as error:
                if result is None:
                    self._count(connection)
                    self.tally.breaks += 1
                    if self._step > furthest:  # the teacher was there until now
                        furthest, since = self._step, time.monotonic()
                if time.monotonic() - since > patience:
                    if result is not None:
                        self.note(f"{error}; what was learned is whole")
                        return result
                    raise EdgecompressError(
                        f"{error}; the teacher stayed away, or no step was gained, for "
                        f"{patience:g} s: is {target} right, and is it there?"
                    ) from error
                self.note(f"{error}; meeting again")
                time.sleep(wait * (0.5 + random.random()))
                wait = min(2 * wait, 5.0)
            except UsageError as error:
                if result is None:
                    raise
                self.note(f"{error}; what was learned is whole")
                return result
            finally:
                connection.close()

    def _count(self, connection: Connection) -> None:
        """Add what a connection has carried, once."""
        self.tally.wire_bytes += connection.sent + connection.received
        connection.sent = connection.received = 0

    def _learn(self, connection: Connection, start: int, pristine: dict[str, Tensor]) -> FitResult:
        self.store.back_to(start)
        self.model.load_state_dict(pristine)
        kept = self.store.get(start)
        self._step, self._batch, self._last, self._waiting, self.mentor_epoch = (
            start,
            None,
            time.monotonic(),
            0.0,
            0,
        )
        self._recall(Tally(**kept["tally"]) if kept is not None else Tally())

        def keep(state: Kept) -> None:
            step = state["step"]
            codecs = {
                "ear": connection.listened.pop(step, connection.ear.state()),
                "mouth": connection.spoken.pop(step, connection.mouth.state()),
            }
            tally = replace(
                self.tally,
                elapsed_s=time.monotonic() - self._began,
                wire_bytes=self._carried(connection),
            )
            self.store.put(
                step,
                {
                    **state,
                    **{name: codec_tensors(codec) for name, codec in codecs.items()},
                    "tally": asdict(tally),
                },
            )

        def on_epoch(row: EpochRow) -> None:
            self.tally.timeline.append(
                {
                    "epoch": row.epoch,
                    "step": self._step,
                    "time_s": round(time.monotonic() - self._began, 3),
                    "validation_accuracy": row.validation_accuracy,
                    "payload_bytes": self.tally.payload_bytes,
                    "wire_bytes": self._carried(connection),
                }
            )
            if self.on_epoch is not None:
                self.on_epoch(row)

        loss, companion = self._taught(connection, start)
        hooks = replace(
            self.cut,
            on_epoch=on_epoch,
            keep=keep,
            keep_every=self.plan.keep_every,
            keep_last=self.plan.steps,
            begin=self.store.get(start),
            companion=companion,
        )
        return fit(
            self.model,
            self.data,
            loss,
            self.settings,
            seed=self.plan.seed,
            device=torch.device("cpu"),
            hooks=hooks,
        )

    def _carried(self, connection: Connection) -> int:
        """Bytes of all frames so far."""
        return self.tally.wire_bytes + connection.sent + connection.received

    def _recall(self, kept: Tally) -> None:
        """Be as after the step of a kept state; what has travelled since has travelled, and the
        clock goes on.
        """
        if (
            not self.tally.step_ms and kept.elapsed_s
        ):  # another process began, which was a break too
            self._began = time.monotonic() - kept.elapsed_s
            kept = replace(kept, breaks=kept.breaks + 1)
        now = self.tally
        self.tally = replace(
            kept,
            wire_bytes=max(kept.wire_bytes, now.wire_bytes),
            breaks=max(kept.breaks, now.breaks),
        )

    def _taught(self, connection: Connection, start: int) -> tuple[Loss, Companion | None]:
        """The loss of this lesson, and what trains beside the student."""
        if self.plan.mutual:
            mutual = Mutual(
                self.plan,
                self.data,
                connection.say,
                lambda step: [self._answer(connection, step).logits],
                start,
            )

            def exchanged(logits: Tensor, batch: Batch) -> Tensor:
                self._advance(batch)
                return mutual(logits, batch)

            return exchanged, mutual
        loss = learning_from(self._targets, self.loss, self.temperature, self.alpha)
        if self.plan.exchange != "features":
            return loss, None
        torch.manual_seed(self.plan.seed)  # for the adapters, which are the same at every try
        ends = self._ends[-len(connection.maps) :]
        channels = [shape[0] for shape in connection.maps]
        told = FeatureLoss(
            self.plan.features, ends, self.model, channels, self._maps, loss, self.feature_weight
        )
        return told, told

    def _targets(self, batch: Batch) -> Tensor:
        """What the teacher says of `batch`, which is the next step."""
        return self._heard(batch).logits

    def _maps(self, batch: Batch, sizes: object) -> Sequence[Tensor]:
        """What the teacher's layers say of it."""
        return self._heard(batch).maps

    def _heard(self, batch: Batch) -> Answer:
        """What is said of a batch; it is waited for once."""
        if batch is not self._batch:
            connection = self._connection
            if connection is None:
                raise ValueError("a lesson needs its connection: call attend")
            self._advance(batch)
            if self.plan.exchange == "weights":
                self._said = Answer(self._from_weights(connection, batch), [], 0)
            else:
                connection.ask_beyond(self._step, self.data)
                self._said = self._answer(connection, self._step)
            self._batch = batch
        return self._said

    def _answer(self, connection: Connection, step: int) -> Answer:
        """The answer to a step, whose payload is counted now, with that of what was sent for it."""
        answer = self._waited(lambda: connection.given(step))
        self.tally.payload_bytes += answer.size + connection.uttered.pop(step, 0)
        return answer

    def _advance(self, batch: Batch) -> None:
        """The training is at the next step."""
        self._step += 1
        if not torch.equal(batch.ids, self.plan.ids(self._step)):
            raise EdgecompressError(
                f"step {self._step} trains on other samples than planned: a bug of "
                "edgecompress, please report it"
            )
        now = time.monotonic()
        self.tally.step_ms.append(1e3 * (now - self._last))
        self.tally.wait_ms.append(self._waiting)
        self._last, self._waiting = now, 0.0
        self.tally.steps, self.tally.samples = self._step, self.tally.samples + len(batch.ids)

    def _waited(self, given: Callable[[], T]) -> T:
        """What `given` brings; the time until it came counts as waiting, in the step that it
        delays.
        """
        began = time.monotonic()
        found = given()
        self._waiting += 1e3 * (time.monotonic() - began)
        return found

    def _from_weights(self, connection: Connection, batch: Batch) -> Tensor:
        """Logits of the teacher's own weights, which come once an epoch (García González 2022,
        figure 2.16).
        """
        from safetensors.torch import load

        epoch, _ = self.plan.place(self._step)
        if self.mentor is None:
            raise UsageError(
                "exchange weights needs the teacher's network by name: give --teacher-model"
            )
        if self.mentor_epoch != epoch:
            weights = self._waited(lambda: connection.weights_of(epoch))
            if epoch > self.tally.weights_epoch:
                self.tally.payload_bytes, self.tally.weights_epoch = (
                    self.tally.payload_bytes + len(weights),
                    epoch,
                )
            state = load(weights)
            shapes = {name: tuple(value.shape) for name, value in self.mentor.state_dict().items()}
            other = sorted(
                name
                for name in {*shapes, *state}
                if name not in state or shapes.get(name) != tuple(state[name].shape)
            )
            if other:
                raise UsageError(
                    f"the teacher's weights do not fit --teacher-model: {len(other)} tensors "
                    f"differ, first '{other[0]}'"
                )
            self.mentor.load_state_dict(state)
            self.mentor_epoch = epoch
        with torch.no_grad():
            logits: Tensor = self.mentor.eval()(batch.images)
        return logits.float()
