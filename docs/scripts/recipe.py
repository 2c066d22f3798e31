"""`docs/reference/recipe.md`: every key of a recipe and of its stages, read from the pydantic
models behind `Recipe`.
"""

from __future__ import annotations

import ast
import enum
import inspect
import re
import sys
import textwrap
import types
from collections.abc import Iterator
from itertools import pairwise
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from docs.scripts.markdown import code, escaped, table
from edgecompress.recipe import Recipe

HEADER = """\
# Recipe

A recipe is a YAML file: which network, which data, and a list of `stages`, each with its name under
`stage`. An unknown key is an error, and so is a value out of bounds; `edgecompress recipe validate
FILE` reports all of them, each with its line. `null` as a default means that the value follows from
the network and the data, or that the setting is off.

```yaml
model: vgg16
data: digits
stages:
  - stage: train
  - stage: prune
    amount: 50%
```
"""
TYPES = {str: "text", int: "integer", float: "number", bool: "true or false", type(None): "null"}
UNITS = {
    "Size": ("size", "bytes with a unit: `4MB` is 4,000,000, `4MiB` is 4,194,304"),
    "Seconds": ("duration", "with a unit: `5ms`, `2s`, `1.5min`"),
    "Count": ("count", "`10M`, `250k` or `1500`"),
    "Share": ("share", "0 to 1: `1%` or `0.01`"),
    "Amount": (
        "amount",
        "how far to prune: `50%` of the parameters to remove, or what may be left: `2Mparams`, "
        "`10MMACs`, `4MB` (the fp32 file)",
    ),
}
"""Annotated types of the models by name: what the page calls them, and how they are written."""
Model = type[BaseModel]


def page(recipe: Model = Recipe) -> str:
    """The text of the page."""
    stages = _models_in(recipe.model_fields["stages"].annotation)
    bases, nested = _shared(stages), _nested(stages)
    parts = [HEADER, "## Keys of a recipe", _table(recipe, [], frozenset({"stages"}))]
    parts += [_stage(model, bases) for model in stages]
    for model in bases:
        parts += [f"## {_title(model)}", *_body(model, bases)]
    for model in nested:
        parts += [f"## {_title(model)}", *_body(model, [])]
    parts += ["## Values with units", table(["value", "written"], UNITS.values())]
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def _stage(model: Model, bases: list[Model]) -> str:
    return "\n\n".join([f"## Stage `{stage_name(model)}`", *_body(model, bases)])


def _body(model: Model, bases: list[Model]) -> list[str]:
    """Description, table of the model's own keys, and a link to the keys that it inherits."""
    parents = [base for base in bases if base is not model and issubclass(model, base)]
    closest = [p for p in parents if not any(q is not p and issubclass(q, p) for q in parents)]
    parts = [_description(model)]
    own = _table(model, closest, frozenset({_discriminator(model)}))
    if own:
        parts.append(own)
    links = [f"[{_title(base).lower()}](#{_anchor(base)})" for base in closest]
    if links:
        parts.append(f"{'Also takes' if own else 'Takes'} the {' and the '.join(links)}.")
    elif not own:
        parts.append("No keys.")
    return [part for part in parts if part]


def _table(model: Model, parents: list[Model], left_out: frozenset[str]) -> str:
    """The keys of `model` that its `parents` lack, or for which it has another default."""
    descriptions = _attribute_docstrings(model)
    hints = get_type_hints(model, include_extras=True)
    rows = []
    for name, field in model.model_fields.items():
        if name in left_out or _same_in(name, field, parents):
            continue
        description = field.description or descriptions.get(name, "")
        rows.append(
            (
                code(field.alias or name),
                _type(hints[name], model) + _field_bounds(field, hints[name]),
                _default(field),
                _prose(description),
            )
        )
    return table(["key", "value", "default", "meaning"], rows) if rows else ""


def _same_in(name: str, field: FieldInfo, parents: list[Model]) -> bool:
    inherited = [p.model_fields[name] for p in parents if name in p.model_fields]
    return any(other.default == field.default for other in inherited)


def stage_name(model: Model) -> str:
    """What `stage:` says for this model."""
    return str(get_args(model.model_fields[_discriminator(model)].annotation)[0])


def _discriminator(model: Model) -> str:
    """The field that names the stage: the required one with a single allowed value."""
    for name, field in model.model_fields.items():
        if get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1:
            return name
    return ""


def _models_in(annotation: Any) -> list[Model]:
    """Every pydantic model that a type mentions, in its order."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]


def _shared(stages: list[Model]) -> list[Model]:
    """Base classes with keys of their own that several stages have in common."""
    ancestors = [base for stage in stages for base in stage.__mro__[1:]]
    found: list[Model] = []
    for base in ancestors:
        is_model = isinstance(base, type) and issubclass(base, BaseModel) and base.model_fields
        if is_model and base not in found and base not in stages and ancestors.count(base) > 1:
            found.append(base)
    return sorted(found, key=lambda base: len(base.__mro__))


def _nested(models: list[Model]) -> list[Model]:
    """Models that are the value of a key."""
    found: list[Model] = []
    for model in models:
        for field in model.model_fields.values():
            for inner in _models_in(field.annotation):
                found += [m for m in (inner, *_nested([inner])) if m not in found]
    return found


def _title(model: Model) -> str:
    """`Training` or `TrainingSettings` as `Training keys`."""
    words = "".join(f" {c.lower()}" if c.isupper() else c for c in model.__name__).split()
    plain = [word for word in words if word not in ("settings", "stage", "keys")]
    return " ".join(plain).capitalize() + " keys"


def _anchor(model: Model) -> str:
    return _title(model).lower().replace(" ", "-")


def _description(model: Model) -> str:
    own = model.__dict__.get("__doc__") or ""
    return "\n\n".join(_prose(part) for part in inspect.cleandoc(own).split("\n\n")) if own else ""


def _prose(text: str) -> str:
    """A docstring as a table cell or paragraph, in the words of YAML."""
    return re.sub(r"\bNone\b", "`null`", escaped(inspect.cleandoc(text))) if text else ""


def _attribute_docstrings(model: Model) -> dict[str, str]:
    """The strings below the fields of a model and of its bases, by field."""
    found: dict[str, str] = {}
    for kind in reversed(model.__mro__):
        if kind is not BaseModel and isinstance(kind, type) and issubclass(kind, BaseModel):
            found |= dict(_docstrings_below(kind))
    return found


def _docstrings_below(kind: type) -> Iterator[tuple[str, str]]:
    try:
        source = textwrap.dedent(inspect.getsource(kind))
    except (OSError, TypeError):  # a model that was made without a source file
        return
    body = ast.parse(source).body[0]
    statements = body.body if isinstance(body, ast.ClassDef) else []
    for field, below in pairwise(statements):
        if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
            continue
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            yield field.target.id, str(below.value.value)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is PydanticUndefined or isinstance(value, BaseModel):
        return ""
    return code(_yaml(value))


def _yaml(value: Any) -> str:
    """A default as a recipe would write it."""
    if isinstance(value, enum.Enum):
        value = value.value
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(_yaml(item) for item in value) + "]"
    return str(value)


def _type(hint: Any, model: Model) -> str:
    """A field's type in words, such as text, size, or the values that are allowed."""
    unit = _unit(hint, model)
    if unit:
        return unit
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _type(arguments[0], model) + _bounds(arguments[1:])
    if origin in (Union, types.UnionType):
        named = [_type(part, model) for part in arguments if part is not type(None)]
        return " or ".join(dict.fromkeys(named))
    if origin is Literal:
        return ", ".join(code(_yaml(choice)) for choice in arguments)
    if origin in (tuple, list):
        return f"list of {_type(arguments[0], model)}"
    if origin is dict:
        return f"mapping of {_type(arguments[0], model)} to {_type(arguments[1], model)}"
    return _plain_type(hint)


def _plain_type(hint: Any) -> str:
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        return f"[{_title(hint).lower()}](#{_anchor(hint)})"
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return ", ".join(code(str(choice.value)) for choice in hint)
    return TYPES.get(hint, getattr(hint, "__name__", str(hint)))


def _unit(hint: Any, model: Model) -> str:
    """What the page calls the annotated type that `hint` is; empty for any other type."""
    if get_origin(hint) is not Annotated:
        return ""
    for kind in model.__mro__:
        module = vars(sys.modules[kind.__module__])
        for name, (word, _) in UNITS.items():
            alias = module.get(name)
            if get_origin(alias) is Annotated and _extends(hint, alias):
                return f"[{word}](#values-with-units)"
    return ""


def _extends(hint: Any, alias: Any) -> bool:
    """Is `hint` the annotated type `alias`, perhaps with more metadata after it?"""
    metadata = alias.__metadata__
    same_type = hint.__origin__ == alias.__origin__
    return bool(same_type and hint.__metadata__[: len(metadata)] == metadata)


def _field_bounds(field: FieldInfo, hint: Any) -> str:
    """Bounds that stand in the field's default value, `= Field(3, ge=1)`."""
    return "" if get_origin(hint) is Annotated else _bounds(tuple(field.metadata))


def _bounds(metadata: tuple[Any, ...]) -> str:
    """Bounds in words, from `annotated_types` or from a `FieldInfo` that carries them."""
    parts = [part for item in metadata for part in getattr(item, "metadata", [item])]
    signs = (("ge", "at least"), ("gt", "above"), ("le", "at most"), ("lt", "below"))
    words = [
        f"{word} {getattr(part, sign):g}"
        for part in parts
        for sign, word in signs
        if isinstance(getattr(part, sign, None), (int, float))
    ]
    return f", {', '.join(words)}" if words else ""
