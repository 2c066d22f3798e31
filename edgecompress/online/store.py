"""Kept states of one end of a lesson: what it goes on from after a break."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgecompress import files


class StateStore:
    """Kept states by step, the newest `most`, and the beginning; in `folder`, where they outlive
    the process, or else in memory.

    The folder's label says which lesson they are of.
    """

    def __init__(self, folder: Path | None, most: int = 3) -> None:
        self.folder, self.most = folder, most
        self._kept: dict[int, Any] = {}

    def claim(self, label: Mapping[str, Any]) -> bool:
        """These states are of the lesson of this label (JSON values); those of any other go.
        Returns whether there were others.
        """
        if self.folder is None:
            return False
        foreign = self.label() != dict(label) and self.steps() != [0]
        if foreign:
            self.clear()
        self.note("lesson", label)
        return foreign

    def label(self) -> dict[str, Any] | None:
        """The label of the lesson whose states these are."""
        return self.noted("lesson")

    def note(self, name: str, values: Mapping[str, Any]) -> None:
        """Write JSON values beside the states."""
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            files.write_json(self.folder / f"{name}.json", dict(values))

    def noted(self, name: str) -> dict[str, Any] | None:
        """What was written, or None."""
        path = self.folder / f"{name}.json" if self.folder is not None else None
        return dict(json.loads(path.read_text())) if path is not None and path.is_file() else None

    def clear(self) -> None:
        """Forget everything."""
        self._drop(lambda _: True)
        for path in self.folder.glob("*.json") if self.folder is not None else []:
            path.unlink()

    def put(self, step: int, state: Any) -> None:
        """Keep `state` of `step`; the oldest go."""
        if self.folder is None:
            self._kept[step] = state
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            with files.whole(self.folder / f"{step:09d}.pt") as temporary:
                torch.save(state, temporary)
        old = set(self.steps()[1 : -self.most])
        self._drop(old.__contains__)

    def steps(self) -> list[int]:
        """Steps of which a state is here; 0, the beginning, always."""
        stored = (
            [int(path.stem) for path in self.folder.glob("*.pt")] if self.folder is not None else []
        )
        return sorted({0, *self._kept, *stored})

    def get(self, step: int) -> Any:
        """The state of `step`, or None for the beginning."""
        if step == 0 or self.folder is None:
            return self._kept.get(step)
        return torch.load(self.folder / f"{step:09d}.pt", weights_only=True)

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
    """The state of a codec as tensors, which a store keeps."""
    return {name: torch.from_numpy(value.copy()) for name, value in state.items()}


def codec_arrays(state: dict[str, Tensor]) -> dict[str, Any]:
    """`codec_tensors`, back."""
    return {name: value.numpy() for name, value in state.items()}
