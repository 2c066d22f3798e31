"""The saved states of one end of a lesson: what it resumes from after a break."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypedDict, cast

import torch
from pydantic import JsonValue
from torch import Tensor

from edgecompress import files
from edgecompress.online.codec import CodecState
from edgecompress.train.fit import Kept


class Label(TypedDict):
    """What a lesson's states belong to: its plan, and what else decides what this end learns (its
    network, loss, learning rate). JSON values.
    """

    plan: dict[str, object]
    own: dict[str, object]


class StateStore:
    """Saved states by step: the newest `most`, and step 0, the beginning; in `folder`, where they
    outlive the process, or else in memory.

    The label in the folder names the lesson that the states belong to.
    """

    def __init__(self, folder: Path | None, most: int = 3) -> None:
        self.folder = folder
        self.most = most
        self._in_memory: dict[int, Kept] = {}

    def claim(self, label: Label) -> bool:
        """Label the folder. States under another label are deleted; returns whether
        there were any.
        """
        if self.folder is None:
            return False
        foreign = self.label() != label and self.steps() != [0]
        if foreign:
            self.clear()
        self.write_note("lesson", label)
        return foreign

    def label(self) -> Label | None:
        """The label of the lesson that the states belong to."""
        return cast("Label | None", self.read_note("lesson"))

    def write_note(self, name: str, values: Mapping[str, object]) -> None:
        """Write JSON values next to the states."""
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            files.write_json(self.folder / f"{name}.json", dict(values))

    def read_note(self, name: str) -> dict[str, JsonValue] | None:
        """The values that `write_note` wrote, or None."""
        path = self.folder / f"{name}.json" if self.folder is not None else None
        return dict(json.loads(path.read_text())) if path is not None and path.is_file() else None

    def clear(self) -> None:
        """Delete all states and notes."""
        self._drop(lambda _: True)
        for path in self.folder.glob("*.json") if self.folder is not None else []:
            path.unlink()

    def put(self, step: int, state: Kept) -> None:
        """Save the state of `step`; the oldest are deleted."""
        if self.folder is None:
            self._in_memory[step] = state
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            with files.whole(self._path(self.folder, step)) as temporary:
                torch.save(state, temporary)
        old = set(self.steps()[1 : -self.most])
        self._drop(old.__contains__)

    def steps(self) -> list[int]:
        """The steps that have a state; 0, the beginning, always does."""
        stored = (
            [int(path.stem) for path in self.folder.glob("*.pt")] if self.folder is not None else []
        )
        return sorted({0, *self._in_memory, *stored})

    def get(self, step: int) -> Kept | None:
        """The state of `step`, or None for the beginning."""
        if step == 0 or self.folder is None:
            return self._in_memory.get(step)
        state: Kept = torch.load(self._path(self.folder, step), weights_only=True)
        return state

    def rewind(self, step: int) -> None:
        """Delete the states newer than `step`."""
        self._drop(lambda stored: stored > step)

    def _drop(self, which: Callable[[int], bool]) -> None:
        for step in [stored for stored in self.steps() if stored and which(stored)]:
            self._in_memory.pop(step, None)
            if self.folder is not None:
                self._path(self.folder, step).unlink(missing_ok=True)

    @staticmethod
    def _path(folder: Path, step: int) -> Path:
        return folder / f"{step:09d}.pt"


def newest_common(*held: Iterable[int]) -> int:
    """The newest step that all of `held` contain; 0, the beginning, is in each."""
    return max(set.intersection(*({0, *steps} for steps in held)))


def codec_tensors(state: CodecState) -> dict[str, Tensor]:
    """The state of a codec as tensors of the same shapes, which a store can save."""
    return {name: torch.from_numpy(value.copy()) for name, value in state.items()}


def codec_arrays(state: Mapping[str, Tensor]) -> CodecState:
    """The inverse of `codec_tensors`: the state, whose arrays have the shapes of the tensors."""
    return {name: value.numpy() for name, value in state.items()}
