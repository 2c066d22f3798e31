"""`names.json`: the names in the network of the values in a lean file, whose own have one or two
letters.

It stands beside the file and is read only for the file that it was written for, which a digest
tells.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from edgecompress import files

NAME = "names.json"


def record(path: Path, names: Mapping[str, str]) -> None:
    """Write the `names` in the network of the values of the file at `path`."""
    notes = path.with_name(NAME)
    known = _read(notes)
    known[path.name] = {"sha256": files.digest(path), "names": dict(names)}
    files.write_json(notes, known)


def recorded(path: Path) -> dict[str, str]:
    """{name in the file at `path`: name in the network}; empty where nothing is known of it."""
    entry = _read(path.with_name(NAME)).get(path.name)
    if not isinstance(entry, dict) or not isinstance(entry.get("names"), dict):
        return {}
    if entry.get("sha256") != files.digest(path):
        return {}  # another file of that name
    return {str(short): str(name) for short, name in entry["names"].items()}


def _read(notes: Path) -> dict[str, object]:
    try:
        content = json.loads(notes.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
