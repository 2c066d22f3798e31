"""What Click says of a command line that it cannot parse, in our words: one line, with the nearest
option or word.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Protocol

from edgecompress.errors import nearest


class ClickError(Protocol):
    """A usage error of Click, which newer versions of typer bring in a module of their own."""

    def format_message(self) -> str:
        """What it says, perhaps in several lines."""


def mistake(error: ClickError) -> str:
    """One line for a wrong command line."""
    option = getattr(error, "option_name", None)
    if option is not None and type(error).__name__ == "NoSuchOption":
        context = getattr(error, "ctx", None)
        hint = f"; {context.command_path} --help lists all" if context is not None else ""
        return f"unknown option {option}{nearest(option, _options(context)) or hint}"
    # the prefix comes from pydantic, by which newer versions of typer parse values
    text = " ".join(error.format_message().replace("Value error, ", "").split())
    choice = re.search(r"'([^']*)' is not one of (.+?)\.?$", text)
    if choice is not None:
        words = re.findall(r"'([^']*)'", choice[2])
        return text.removesuffix(".") + nearest(choice[1], words)
    return text


def _options(context: object) -> Iterator[str]:
    """Every option of the command that was called."""
    for parameter in getattr(getattr(context, "command", None), "params", []):
        yield from (name for name in parameter.opts if name.startswith("--"))
    yield "--help"
