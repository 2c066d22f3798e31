"""`docs/reference/cli.md`: every verb and its options, read from the Typer application.

Nothing is run: names, help, defaults and panels come from the command objects, types from the
signatures behind them.
"""

from __future__ import annotations

import enum
import types
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any, Literal, Union, get_args, get_origin

import typer
from typer.utils import get_params_from_function

from docs.scripts.markdown import code, escaped, table
from edgecompress.cli.app import app

HEADER = """\
# Command line

Every command of `edgecompress`, as its `--help` shows it. An option that has an environment
variable takes its value from there when the command line leaves it out.
"""
TYPES = {str: "text", int: "integer", float: "number", bool: "flag"}


def page(application: typer.Typer = app) -> str:
    """The text of the page."""
    root = typer.main.get_command(application)
    parts = [HEADER]
    epilog = _plain(root.epilog)
    if epilog:
        parts.append(f"{epilog}\n")
    parts += [_section(name, command) for name, command in _commands(root, "edgecompress")]
    return "\n".join(parts)


def _commands(group: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """(full name, command) of every command that is not hidden, groups opened."""
    for name, command in group.commands.items():
        if getattr(command, "hidden", False):
            continue
        full = f"{prefix} {name}"
        if hasattr(command, "commands"):
            yield from _commands(command, full)
        else:
            yield full, command


def _section(name: str, command: Any) -> str:
    prose, examples = _help(command)
    parts = [f"## {name}", prose]
    if examples:
        parts.append("\n".join(["```sh", *examples, "```"]))
    shown = [p for p in command.params if not getattr(p, "hidden", False) and p.name != "help"]
    annotations = {
        name: parameter.annotation
        for name, parameter in get_params_from_function(command.callback).items()
    }
    arguments = [p for p in shown if p.param_type_name == "argument"]
    if arguments:
        rows = [_argument(p) for p in arguments]
        parts += ["**Arguments**", table(["argument", "meaning"], rows)]
    for panel, options in _panels(shown).items():
        lines = [_option(p, annotations.get(p.name, str)) for p in options]
        parts += [f"**{panel}**", table(["option", "value", "default", "meaning"], lines)]
    return "\n\n".join(parts) + "\n"


def _panels(parameters: list[Any]) -> dict[str, list[Any]]:
    """Options by help panel, in the order in which the command declares them."""
    panels: dict[str, list[Any]] = {}
    for parameter in parameters:
        if parameter.param_type_name == "option":
            panel = getattr(parameter, "rich_help_panel", None)
            name = panel if isinstance(panel, str) else "Options"
            panels.setdefault(name, []).append(parameter)
    return panels


def _help(command: Any) -> tuple[str, list[str]]:
    """The command's help as paragraphs, and the commands of its examples."""
    paragraphs, examples = [], []
    for paragraph in _plain(command.help).split("\n\n"):
        text = " ".join(paragraph.split())
        if text.startswith("Example:"):
            examples.append(text.removeprefix("Example:").strip())
        elif text:
            paragraphs.append(escaped(text))
    return "\n\n".join(paragraphs), examples


def _plain(text: str | None) -> str:
    """Help text without Click's markers for paragraphs that are kept as they are."""
    return (text or "").replace("\b", "").strip()


def _argument(parameter: Any) -> tuple[str, str]:
    name = str(parameter.metavar or parameter.name).upper()
    if parameter.nargs == -1:
        name += "..."
    optional = "" if parameter.required else " (optional)"
    return code(name), escaped(_plain(parameter.help)) + optional


def _option(parameter: Any, annotation: Any) -> tuple[str, str, str, str]:
    names = ", ".join(code(name) for name in [*parameter.opts, *parameter.secondary_opts])
    value = _value(annotation, parameter)
    if getattr(parameter, "multiple", False):
        value += ", repeatable"
    return names, value, _default(parameter), _meaning(parameter)


def _meaning(parameter: Any) -> str:
    parts = [escaped(_plain(parameter.help))]
    if parameter.envvar:
        names = [parameter.envvar] if isinstance(parameter.envvar, str) else parameter.envvar
        parts.append("environment " + ", ".join(code(name) for name in names))
    return "; ".join(part for part in parts if part)


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    value = parameter.default
    if value is None or value is False or value in ((), []) or callable(value):
        return ""
    if isinstance(value, enum.Enum):
        value = value.value
    return code(str(value))


def _value(annotation: Any, parameter: Any) -> str:
    """What the option takes: its choices, or its type and bounds."""
    kind = _inner(annotation)
    choices = _choices(kind)
    if choices:
        return ", ".join(code(choice) for choice in choices)
    if isinstance(kind, type) and issubclass(kind, PurePath):
        return "path"
    return TYPES.get(kind, "text") + _bounds(parameter)


def _inner(annotation: Any) -> Any:
    """`T` of `T | None`, `list[T]` and `tuple[T, ...]`."""
    if get_origin(annotation) in (Union, types.UnionType, list, tuple):
        inner = [part for part in get_args(annotation) if part not in (type(None), Ellipsis)]
        return _inner(inner[0])
    return annotation


def _choices(kind: Any) -> list[str]:
    if get_origin(kind) is Literal:
        return [str(choice) for choice in get_args(kind)]
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return [str(choice.value) for choice in kind]
    return []


def _bounds(parameter: Any) -> str:
    low, high = getattr(parameter, "min", None), getattr(parameter, "max", None)
    if low is not None and high is not None:
        return f", {low} to {high}"
    if low is not None:
        return f", at least {low}"
    if high is not None:
        return f", at most {high}"
    return ""
