"""A student's session: the teacher's state of one student, across its connections."""

from __future__ import annotations

import queue
from dataclasses import dataclass, field

from torch import Tensor

from edgecompress.errors import EdgecompressError
from edgecompress.online.codec import Array, Codec, CodecState
from edgecompress.online.plan import Plan
from edgecompress.online.store import StateStore, codec_arrays, codec_tensors
from edgecompress.online.wire import Metadata

Outbox = queue.Queue[tuple[int, Array]]
"""(step, logits (B, K) float32) that a training has published for a student."""


@dataclass
class StudentSession:
    """One student of a lesson, and its current connection.

    Progress: `answered` is the last step whose answer was sent, `epoch` the last one whose weights
    were requested, `saved_steps` those that both ends can return to. In mutual learning
    `peer_logits` are the student's logits by step.

    Connection: `connections` counts those so far; the session is `present` from the hello to the
    end of the stream, and `connected` from the common step on. `error` ends the stream. The student
    is `confirmed` when nothing about it was refused, `done` (its last words) when it has learned
    all steps, and `dismissed` when it knows that the lesson is over.
    """

    plan: Plan
    store: StateStore
    encoder: Codec
    decoder: Codec
    instance: str = ""

    answered: int = 0
    epoch: int = 0
    saved_steps: list[int] = field(default_factory=list)
    outbox: Outbox = field(default_factory=queue.Queue)
    peer_logits: dict[int, Tensor] = field(default_factory=dict)
    sent_states: dict[int, CodecState] = field(default_factory=dict)
    received_states: dict[int, CodecState] = field(default_factory=dict)

    connections: int = 0
    present: bool = False
    connected: bool = False
    confirmed: bool = False
    error: EdgecompressError | None = None
    done: Metadata | None = None
    dismissed: bool = False

    @classmethod
    def new(cls, plan: Plan, store: StateStore) -> StudentSession:
        """A session that has not exchanged anything."""
        return cls(plan, store, plan.new_codec(), plan.new_codec())

    def open(self, instance: str, saved_steps: list[int]) -> None:
        """A new connection of the student, which has said hello."""
        self.instance = instance
        self.saved_steps = saved_steps
        self.connections += 1
        self.present = True
        self.connected = False
        self.error = None
        self.done = None
        self.dismissed = False

    def save_codecs(self, step: int) -> None:
        """Save the codecs' states after the messages of `step`, once all of them have travelled."""
        complete = step in self.sent_states and (
            not self.plan.mutual or step in self.received_states
        )
        if self.plan.codec != "soft" or not complete:
            return
        state = {
            "encoder": codec_tensors(self.sent_states.pop(step)),
            "decoder": codec_tensors(self.received_states.pop(step, {})),
        }
        self.store.put(step, state)

    def rewind(self, start: int) -> None:
        """Return to the state after the messages of `start`; what followed is sent again."""
        self.answered = start
        self.epoch = 0
        self.store.rewind(start)

        self.encoder = self.plan.new_codec()
        self.decoder = self.plan.new_codec()
        kept = self.store.get(start) if self.plan.codec == "soft" else None
        if kept is not None:
            self.encoder.restore(codec_arrays(kept["encoder"]))
            if self.plan.mutual:
                self.decoder.restore(codec_arrays(kept["decoder"]))

        self.outbox = queue.Queue(max(self.plan.window, self.plan.staleness) + 2)
        self.peer_logits = {}
        self.sent_states = {}
        self.received_states = {}
