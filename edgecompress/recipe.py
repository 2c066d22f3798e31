"""Recipes: YAML that says which network, which data, and which stages. Every verb that trains
writes one, and `run` reads one.

    model: vgg16
    data: digits
    stages:
      - stage: train
      - stage: prune
        amount: 50%
    variants:              # optional: other values by name, for --variant full
      full: {data: cifar10, stages.0.epochs: 200}

Unknown keys are errors, and all errors are reported at once, each with its line. `resolved.yaml` is
a recipe too, with the origin of each value as a comment.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from edgecompress.errors import UnknownNameError, UsageError, nearest
from edgecompress.run.stage import RunSettings, Stage
from edgecompress.stages import STAGES, stage_names
from edgecompress.stages.fields import Training

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

    AnyStage = Stage
else:
    AnyStage = Annotated[Union[tuple(STAGES)], Field(discriminator="stage")]  # noqa: UP007


class Recipe(RunSettings):
    """A complete run, as a recipe describes it."""

    stages: Annotated[tuple[AnyStage, ...], Field(min_length=1)]
    """What is done, in order."""

    @model_validator(mode="before")
    @classmethod
    def _no_null_stages(cls, values: object) -> object:
        if isinstance(values, dict) and "stages" in values and values["stages"] is None:
            raise ValueError("stages is empty: list at least one, e.g. - stage: train")
        return values

    @model_validator(mode="after")
    def _taught(self) -> Recipe:
        taught = False
        for stage in self.stages:
            taught = taught or stage.teaches
            if not taught and (settings := stage.teacher_settings()):
                raise ValueError(
                    f"stage {stage.stage} has no teacher for its {', '.join(settings)}: put a "
                    "stage teacher before it, or drop that"
                )
        return self

    @model_validator(mode="after")
    def _in_time(self) -> Recipe:
        """A time needs trainings that can be fitted to it."""
        trainings = [stage for stage in self.stages if isinstance(stage, Training)]
        rigid = [stage.stage for stage in trainings if not stage.fits_time()]
        if self.time is not None and rigid:
            raise ValueError(
                f"time: the epochs of stage {rigid[0]} cannot be fitted to a time; leave time out, "
                "and give epochs"
            )
        if self.time is not None and all(stage.epochs is not None for stage in trainings):
            raise ValueError(
                "time: no training whose epochs are open; leave time out, or the epochs of one"
            )
        return self


Place = tuple[str | int, ...]
"""A place in a recipe: keys, and positions in lists."""
MOST_CHARACTERS = 1_000_000
"""Longest text of a recipe."""
MOST_VALUES = 20_000
"""Keys and values of a recipe at most, aliases counted as what they stand for: ten lines of aliases
can stand for more values than fit into memory.
"""


def read_text(path: Path) -> str:
    """The text of a recipe. Raises `OSError`, `UnicodeDecodeError`, and `yaml.YAMLError` for a file
    that is longer than any recipe.
    """
    with open(path, encoding="utf-8") as stream:
        text = stream.read(MOST_CHARACTERS + 1)
    if len(text) > MOST_CHARACTERS:
        raise yaml.YAMLError(f"it has more than {MOST_CHARACTERS:,} characters")
    return text


def parsed(text: str) -> tuple[Any, yaml.Node | None]:
    """The value of a YAML text, and its node. Raises `yaml.YAMLError`, also for a text that is
    nested too deeply or stands for too many values.
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        count = 0 if node is None else _values_in(node, {})
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deeply") from error
    if count > MOST_VALUES:
        raise yaml.YAMLError(f"it stands for more than {MOST_VALUES:,} values")
    try:
        return yaml.safe_load(text), node
    except (ValueError, KeyError, AttributeError, TypeError) as error:  # 2024-13-45, !!bool x
        raise yaml.YAMLError(f"{type(error).__name__}: {error}") from error


def _values_in(node: yaml.Node, known: dict[int, int]) -> int:
    """Keys and values below a node, aliases counted as what they stand for; `known` has those of
    nodes by identity. Raises `yaml.YAMLError` where an alias stands for what it stands in.
    """
    place = id(node)
    if place not in known:
        known[place] = 0  # being counted
        parts = [part for pair in node.value for part in pair] if _is_mapping(node) else node.value
        inner = parts if isinstance(node, yaml.CollectionNode) else []
        known[place] = 1 + sum(_values_in(part, known) for part in inner)
    if known[place] == 0:
        raise yaml.YAMLError("an alias stands for what it stands in")
    return known[place]


def _is_mapping(node: yaml.Node) -> bool:
    return isinstance(node, yaml.MappingNode)


def _lines(node: yaml.Node | None, path: Place = ()) -> dict[Place, int]:
    """Line number (from 1) of every key and item below a YAML node, by path."""
    lines: dict[Place, int] = {}
    if node is None:
        return lines
    lines[path] = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            lines |= _lines(value, (*path, key.value))
            lines[(*path, key.value)] = key.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            lines |= _lines(item, (*path, number))
    return lines


def problems(
    error: ValidationError,
    where: str,
    lines: Mapping[Place, int],
    options: Mapping[Place, str],
) -> str:
    """One line that holds every error, with its line number and key, or the option that gave it."""
    kinds = set(stage_names())
    parts = []
    nested = [p["loc"] for p in error.errors()]
    for problem in error.errors():
        loc = problem["loc"]
        if problem["type"] == "too_short" and any(
            len(n) > len(loc) and n[: len(loc)] == loc for n in nested
        ):
            continue  # the list is only short because its items are wrong
        path = tuple(p for i, p in enumerate(problem["loc"]) if not (p in kinds and i == 2))
        known = next((lines[path[:n]] for n in range(len(path), -1, -1) if path[:n] in lines), None)
        prefixes = (path[:n] for n in range(len(path), 0, -1))
        option = next((options[prefix] for prefix in prefixes if prefix in options), None)
        place = f"line {known}, " if known is not None and option is None else ""
        key = option or ".".join(str(p) for p in path) or "recipe"
        text = (
            problem["msg"]
            .removeprefix("Value error, ")
            .replace("Extra inputs are not permitted", "unknown key")
        )
        given = problem.get("input")
        shown = (
            f" (got {given!r})" if isinstance(given, (str, int, float)) and "'" not in text else ""
        )
        parts.append(f"{place}{key}: {text}{shown}{_nearest(problem)}")
    return f"{where}: {len(parts)} error(s): " + "; ".join(parts)


def _nearest(problem: ErrorDetails) -> str:
    """The key, or the word, that was probably meant."""
    *path, last = problem["loc"] or ("",)
    if problem["type"] == "extra_forbidden":
        return nearest(str(last), _keys(path))
    words = re.findall(r"'([^']*)'", str(problem.get("ctx", {}).get("expected", "")))
    words += re.findall(r"'([^']*)'", str(problem.get("ctx", {}).get("expected_tags", "")))
    given = problem.get("ctx", {}).get("tag", problem["input"])
    return nearest(given, words) if isinstance(given, str) else ""


def _keys(path: Sequence[str | int]) -> list[str]:
    """The keys that may stand at `path` of a recipe, as pydantic names it."""
    kind: type[BaseModel] = Recipe
    kinds = {name: stage for stage, name in zip(STAGES, stage_names(), strict=True)}
    for part in path:
        if str(part) in kinds and kind is Recipe:
            kind = kinds[str(part)]
        elif isinstance(part, str) and part in kind.model_fields:
            types = [
                kind.model_fields[part].annotation,
                *get_args(kind.model_fields[part].annotation),
            ]
            inner = [one for one in types if inspect.isclass(one) and issubclass(one, BaseModel)]
            kind = inner[0] if inner else kind
    return list(kind.model_fields)


def validate(
    values: object,
    where: str,
    lines: Mapping[Place, int] | None = None,
    options: Mapping[Place, str] | None = None,
) -> Recipe:
    """The recipe in `values`. Raises one `UsageError` with all errors.

    `where` names the source; `lines` has the line of each place in it, `options` the option of the
    command line that gave a value.
    """
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise UsageError(problems(error, where, lines or {}, options or {})) from error


def read(
    path: Path,
    overrides: Mapping[str, str] | None = None,
    variant: str | None = None,
    options: Mapping[str, str] | None = None,
) -> Recipe:
    """The recipe in the YAML file at `path`, its `variant` and then `overrides`
    (`{"stages.0.epochs": "3"}`), set over it. Errors call an override as `options` do, or
    `--set stages.0.epochs`.
    """
    try:
        values, node = parsed(read_text(path))
    except OSError as error:
        raise UsageError(
            f"recipe '{path}' cannot be read: {error.strerror}; give a .yaml file"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"recipe '{path}' is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UsageError(f"recipe '{path}' holds no mapping: start with model: NAME")
    for key, value in _variant(values.pop("variants", None), variant, path).items():
        _set(values, key, value)
    named: dict[Place, str] = {}
    for key, text_value in (overrides or {}).items():
        _set(values, key, _value(key, text_value))
        place = tuple(int(part) if part.isdigit() else part for part in key.split("."))
        named[place] = (options or {}).get(key, f"--set {key}")
    return validate(values, str(path), _lines(node), named)


def _variant(known: object, wanted: str | None, path: Path) -> dict[str, object]:
    """The values of the variant called `wanted`: places (`stages.0.epochs`) with what stands there
    in it.
    """
    named = {} if known is None else known
    if not isinstance(named, dict) or not all(isinstance(one, dict) for one in named.values()):
        raise UsageError(
            f"recipe '{path}': variants maps names to places and values, e.g. full: "
            "{stages.0.epochs: 300}"
        )
    if wanted is None:
        return {}
    if wanted not in named:
        raise UnknownNameError(
            "variant", wanted, named, "" if named else f"('{path}' has none: leave --variant out)"
        )
    return {str(key): value for key, value in named[wanted].items()}


def _set(values: Any, key: str, value: object) -> None:
    """Set `a.b.0.c` in nested mappings and lists, in place."""
    *path, last = key.split(".")
    try:
        for part in path:
            values = values[int(part)] if isinstance(values, list) else values.setdefault(part, {})
        if isinstance(values, list):
            values[int(last)] = value
        else:
            values[last] = value
    except (ValueError, IndexError, AttributeError, TypeError) as error:
        raise UsageError(
            f"--set {key}: no such place in the recipe; write keys and list positions, e.g. "
            "stages.0.epochs=3"
        ) from error


def _value(key: str, text: str) -> object:
    """The value of `--set KEY=TEXT`."""
    try:
        return parsed(text)[0]
    except yaml.YAMLError as error:
        raise UsageError(
            f"--set {key}: '{text[:40]}' is no YAML: {' '.join(str(error).split())}"
        ) from error


def parse_overrides(pairs: list[str]) -> dict[str, str]:
    """`["a.b=c"]` as `{"a.b": "c"}`. Raises `UsageError` without an equals sign."""
    overrides = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UsageError(f"--set '{pair}' has no value: write it like --set stages.0.epochs=3")
        overrides[key] = value
    return overrides


def to_yaml(recipe: RunSettings, origins: Mapping[str, str] | None = None) -> str:
    """The recipe as YAML that `read` takes back, each value with its origin as a comment (default
    where `origins` is silent). What is still open, None by default, is left out.
    """
    origins = origins or {}
    lines = ["# edgecompress run resolved.yaml"]

    def emit(value: object, path: str, indent: str, lead: str) -> None:
        if isinstance(value, dict):
            for number, (key, inner) in enumerate(value.items()):
                start = lead if number == 0 else indent
                where = f"{path}.{key}" if path else str(key)
                if _nested(inner):
                    lines.append(f"{start}{key}:")
                    emit(inner, where, indent + "  ", indent + "  ")
                else:
                    lines.append(
                        f"{start}{key}: {_scalar(inner)}  # {origins.get(where, 'default')}"
                    )
        elif isinstance(value, list):
            for number, inner in enumerate(value):
                emit(inner, f"{path}.{number}", indent + "  ", indent + "- ")

    emit(_given_values(recipe, recipe.model_dump(mode="json")), "", "", "")
    return "\n".join(lines) + "\n"


def _nested(value: object) -> bool:
    """Does it take lines of its own: a mapping, or a list of mappings? Other lists are values."""
    if isinstance(value, list):
        return any(isinstance(item, (dict, list)) for item in value)
    return isinstance(value, dict) and bool(value)


def _given_values(value: object, dumped: Any) -> Any:
    """`dumped` without the fields of the model `value` that are None as by default."""
    if isinstance(value, BaseModel):
        fields = type(value).model_fields
        return {
            name: _given_values(getattr(value, name), dumped[name])
            for name, field in fields.items()
            if getattr(value, name) is not None or field.default is not None
        }
    if isinstance(value, tuple) and isinstance(dumped, list):
        return [_given_values(*pair) for pair in zip(value, dumped, strict=True)]
    return dumped


def _scalar(value: object) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6).strip()
    return text.removesuffix("...").strip()


def leaves(text: str) -> list[str]:
    """Places (`stages.0.epochs`) of all values that the recipe `text` states, in their order."""

    def walk(value: object, place: str) -> list[str]:
        if not _nested(value):
            return [place]
        items = value.items() if isinstance(value, dict) else enumerate(value)  # type: ignore[arg-type]
        return [
            leaf
            for key, inner in items
            for leaf in walk(inner, f"{place}.{key}" if place else str(key))
        ]

    return walk(parsed(text)[0], "")
