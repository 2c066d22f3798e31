"""Our metadata of an ONNX file, read with care: a file may come from anywhere.

image_shape           [C, H, W]
mean, std             one number per channel, for values in 0..1
resize, crop, scale   how pixels become the input (`data.Preprocess`)
classes               names of the outputs
data                  what the network was trained on
task, heads           what the outputs are, where they are not the logits of one classification
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from edgecompress.errors import UsageError

PREFIX = "edgecompress."
T = TypeVar("T")


class Metadata:
    """The entries of the file at `path`, parsed; a value of another type than the one that is asked
    for is a `UsageError` that names it.
    """

    def __init__(self, path: Path, custom: Mapping[str, str]) -> None:
        self.path = path
        self.entries: dict[str, object] = {
            key.removeprefix(PREFIX): _parsed(value)
            for key, value in custom.items()
            if key.startswith(PREFIX)
        }

    def __contains__(self, key: str) -> bool:
        return key in self.entries

    def text(self, key: str) -> str | None:
        """The text at `key`, None where there is none."""
        return self._one(key, lambda value: isinstance(value, str), str)

    def integer(self, key: str) -> int | None:
        """The integer at `key`, None where there is none."""
        return self._one(key, _is_integer, lambda value: int(str(value)))

    def number(self, key: str) -> float | None:
        """The number at `key`, None where there is none."""
        return self._one(key, _is_number, lambda value: float(str(value)))

    def texts(self, key: str) -> list[str] | None:
        """The list of texts at `key`, None where there is none."""
        return self._all(key, lambda value: isinstance(value, str), str)

    def integers(self, key: str) -> list[int] | None:
        """The list of integers at `key`, None where there is none."""
        return self._all(key, _is_integer, lambda value: int(str(value)))

    def numbers(self, key: str) -> list[float] | None:
        """The list of numbers at `key`, None where there is none."""
        return self._all(key, _is_number, lambda value: float(str(value)))

    def wrong(self, key: str, why: str = "") -> UsageError:
        """The error for a value that does not fit."""
        value = self.entries.get(key)
        return UsageError(f"'{self.path}' has {key} {value!r} in its metadata{why}: export it anew")

    def _one(
        self, key: str, fits: Callable[[object], bool], convert: Callable[[object], T]
    ) -> T | None:
        value = self.entries.get(key)
        if value is None:
            return None
        if not fits(value):
            raise self.wrong(key)
        return convert(value)

    def _all(
        self, key: str, fits: Callable[[object], bool], convert: Callable[[object], T]
    ) -> list[T] | None:
        value = self.entries.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or not all(fits(item) for item in value):
            raise self.wrong(key)
        return [convert(item) for item in value]


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return _is_integer(value) or isinstance(value, float)


def _parsed(text: str) -> object:
    """`text` as JSON, or as it is."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
