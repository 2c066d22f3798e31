"""A student as its teacher sees it."""

from __future__ import annotations

import queue
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from edgecompress.errors import EdgecompressError
from edgecompress.methods.features import Taps
from edgecompress.online.codec import Codec
from edgecompress.online.plan import Plan
from edgecompress.online.store import StateStore, codec_arrays, codec_tensors


@dataclass
class StudentSession:
    """A student in a lesson: what it will be told, what it said, and how it ended."""

    plan: Plan
    store: StateStore
    codec: Codec
    ear: Codec
    instance: str = ""
    waiting: queue.Queue[tuple[int, Any]] = field(default_factory=queue.Queue)
    heard: dict[int, Tensor] = field(default_factory=dict)
    spoken: dict[int, dict[str, Any]] = field(default_factory=dict)
    listened: dict[int, dict[str, Any]] = field(default_factory=dict)
    taps: Taps | None = None
    sizes: list[tuple[int, int]] = field(default_factory=list)
    epoch: int = 0
    answered: int = 0
    have: list[int] = field(default_factory=list)
    greeted: bool = False
    present: bool = False
    connected: bool = False
    done: dict[str, Any] | None = None
    heard_the_end: bool = False
    meetings: int = 0
    wrong: EdgecompressError | None = None

    def keep_codecs(self, step: int) -> None:
        """Keep the codecs' states after the messages of `step`, once all of them have travelled."""
        ears = self.listened if self.plan.mutual else self.spoken
        if self.plan.codec == "soft" and step in self.spoken and step in ears:
            self.store.put(
                step,
                {
                    "mouth": codec_tensors(self.spoken.pop(step)),
                    "ear": codec_tensors(ears.pop(step, {})),
                },
            )

    def go_back(self, start: int) -> None:
        """Be as after the messages of `start`; what was said since is said again."""
        plan = self.plan
        self.answered, self.epoch = start, 0
        self.store.back_to(start)
        self.codec, self.ear = (
            Codec(plan.codec, plan.samples, plan.classes, plan.top_k) for _ in range(2)
        )
        if start and plan.codec == "soft":
            kept = self.store.get(start)
            self.codec.restore(codec_arrays(kept["mouth"]))
            if plan.mutual:
                self.ear.restore(codec_arrays(kept["ear"]))
        self.waiting = queue.Queue(max(plan.window, plan.staleness) + 2)
        self.heard, self.spoken, self.listened = {}, {}, {}
