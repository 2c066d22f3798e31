"""Markdown helpers: tables, and blocks between markers that a script fills."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

BLOCK = re.compile(r"<!-- results: (?P<name>[\w-]+) -->\n(?P<body>.*?)<!-- end -->", re.DOTALL)
"""`<!-- results: NAME -->`, what the script writes, `<!-- end -->`."""


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, without a newline at its end."""
    lines = [_row(columns), "|" + "---|" * len(columns)]
    lines += [_row(row) for row in rows]
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def escaped(text: str) -> str:
    """`text` as one table cell: one line, with pipes and angle brackets escaped."""
    one_line = " ".join(text.split())
    return one_line.replace("|", "\\|").replace("<", "&lt;")


def code(text: str) -> str:
    """`text` as inline code in a table cell."""
    return "`" + text.replace("|", "\\|") + "`"


def blocks(text: str) -> list[tuple[str, str]]:
    """(name, body) of every marked block of a page."""
    return [(match["name"], match["body"]) for match in BLOCK.finditer(text)]


def filled(text: str, builders: Mapping[str, Callable[[], str]]) -> str:
    """The page with every marked block written anew. Raises `KeyError` for an unknown name."""

    def body(match: re.Match[str]) -> str:
        name = match["name"]
        return f"<!-- results: {name} -->\n{builders[name]()}\n<!-- end -->"

    return BLOCK.sub(body, text)
