"""Files that are whole or not there: temporary name, fsync, rename. The only JSON writer."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgecompress.errors import EdgecompressError


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary path in the folder of `path`; renamed to `path` when the block ends well, removed
    when it does not.

    Raises `EdgecompressError` naming `path` when the file system refuses (disk full, no
    permission); an older `path` then stays.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise EdgecompressError(
            f"cannot write '{path}': {error.strerror or error}; free the space or choose another -o"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path`, whole or not at all."""
    with whole(path) as temporary:
        temporary.write_bytes(content)


def digest(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    hashed = hashlib.sha256()
    with open(path, "rb") as stream:
        while part := stream.read(1 << 20):
            hashed.update(part)
    return hashed.hexdigest()


def to_json(value: Any) -> str:
    """`value` as JSON with two-space indents; NaN and infinities are refused, since other parsers
    do.
    """
    return json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False, default=str)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON to `path`, whole or not at all."""
    write_bytes(path, (to_json(value) + "\n").encode())


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write `rows` (all with the keys of the first) as CSV to `path`, whole or not at all."""
    buffer = io.StringIO()
    if rows:
        writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    write_bytes(path, buffer.getvalue().encode())


def append_line(path: Path, value: Mapping[str, Any]) -> None:
    """Append `value` as one line of JSON; the only file that is not written whole. Readers drop a
    torn last line.
    """
    try:
        with open(path, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(value, allow_nan=False, default=str) + "\n")
    except OSError as error:
        raise EdgecompressError(
            f"cannot write '{path}': {error.strerror or error}; free the space or choose another -o"
        ) from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file that `append_line` wrote, without a torn last line."""
    rows = []
    for line in path.read_text(encoding="utf-8").split("\n") if path.exists() else []:
        try:
            value = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(value, dict):
            rows.append(value)
    return rows


def cache_dir() -> Path:
    """`$XDG_CACHE_HOME/edgecompress`, by default `~/.cache/edgecompress`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgecompress"
