"""Pages from templates: one file, no scripts, nothing fetched."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, select_autoescape

from edgecompress import files
from edgecompress.units import format_count, format_duration, format_size


def write_page(path: Path, template: str, **values: object) -> None:
    """Write `template`, filled with `values`, to `path`."""
    files.write_bytes(path, _environment().get_template(template).render(**values).encode())


@cache
def _environment() -> Environment:
    """The templates, each compiled once in a process."""
    environment = Environment(
        loader=PackageLoader("edgecompress.report"), autoescape=select_autoescape(["html", "j2"])
    )
    environment.filters.update(size=format_size, count=format_count, duration=format_duration)
    return environment
