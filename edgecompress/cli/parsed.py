"""What the command line parses for a field of settings: its type, bounds and words."""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BeforeValidator
from pydantic.fields import FieldInfo


def bound(field: FieldInfo, name: str) -> float | None:
    """The least (`ge`) or largest (`le`) value of a number."""
    parts = [field.annotation, *get_args(field.annotation)]
    inner = [item for part in parts for item in getattr(part, "__metadata__", ())]
    for item in (*field.metadata, *inner):
        for constraint in getattr(item, "metadata", None) or [item]:
            value = getattr(constraint, name, None)
            if isinstance(value, (int, float)):
                return value
    return None


def parameter_of(flags: tuple[str, ...]) -> str:
    """`--max-drop` as a parameter: the name of the environment variable too."""
    name = flags[-1].lstrip("-").replace("-", "_")
    return {"json": "as_json"}.get(name, name)


def cli_type(field: FieldInfo) -> Any:
    """What the command line parses: bool, int, float, Path, one of some words, or text that the
    recipe parses (units, lists, a word or a number).
    """
    kinds = set(_leaves(field.annotation, bool(_parsers(field.metadata))))
    words = [word for word in kinds if isinstance(word, str)]
    if words and len(words) == len(kinds):
        ordered = [word for word in literals(field.annotation) if word in words]
        return Enum("Choice", {word: word for word in ordered}, type=str)
    return kinds.pop() if len(kinds) == 1 and not words else str


def _leaves(annotation: Any, parsed: bool = False) -> Iterable[Any]:
    """The types, and words of literals, that an annotation allows; text where it is parsed."""
    if parsed:
        yield str
    elif get_origin(annotation) is Annotated:
        inner, *metadata = get_args(annotation)
        yield from _leaves(inner, bool(_parsers(metadata)))
    elif get_origin(annotation) is Literal:
        yield from get_args(annotation)
    elif get_origin(annotation) in (Union, types.UnionType):
        for part in get_args(annotation):
            yield from _leaves(part)
    elif annotation in (bool, int, float, Path):
        yield annotation
    elif annotation is not type(None):
        yield str


def literals(annotation: Any) -> list[str]:
    """The words of all literals in `annotation`, in their order."""
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [word for part in get_args(annotation) for word in literals(part)]


def _parsers(metadata: Iterable[Any]) -> list[Any]:
    return [item for item in metadata if isinstance(item, BeforeValidator)]


def member(kind: Any, value: Any) -> Any:
    """The default as the type of the option has it."""
    return kind(value) if inspect.isclass(kind) and issubclass(kind, Enum) and value else value
